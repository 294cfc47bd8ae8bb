"""``python -m bench tables --output build/tables``: what the budgets record, as pages to read.

compiled.md, compiled_csrc.md and projections.md, within seconds: nothing is compiled.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.compiled import csrc, triton
from bench.compiled.budget import Budget
from bench.machine import RESULTS
from bench.model import report
from bench.model.projections import projections_page
from bench.results import read_all
from ocvtp_kernels.files import atomic_write

TABLES = (
    ("compiled", "What the Triton kernels compile to", triton),
    ("compiled_csrc", "What the CUDA C++ kernels compile to", csrc),
)


def page(title: str, description: str, budget: Budget) -> str:
    """A budget in Markdown: a table a group, and below it why rows may be worse than before."""
    blocks = [f"# {title}", description.strip()]
    for name, group in budget.groups.items():
        blocks += [f"## {name}", f"Compiled by {group.version}.", group.table()]
        blocks += [f"{key}: {reason}." for key, reason in group.reasons.items()]
    return "\n\n".join(blocks) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench tables", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/tables"), help="the folder")
    given = parser.parse_args(arguments)
    pages = {
        f"{name}.md": page(title, module.__doc__ or "", Budget.read(module.BUDGET))
        for name, title, module in TABLES
    }
    measured = read_all(RESULTS)
    pages["projections.md"] = projections_page(Budget.read(report.BUDGET), measured)
    given.output.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        atomic_write(given.output / name, text)
        print(given.output / name)
    return 0
