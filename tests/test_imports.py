"""What importing the package, and asking its command for help, brings into a process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.build_cases import ROOT

# Each costs more than all of ours together, or is an extra that need not be installed.
HEAVY = (
    "torch._dynamo", "torch._inductor", "sympy", "triton",
    "transformers", "PIL", "matplotlib", "typer", "accelerate", "tqdm",
)  # fmt: skip
IN_HELP = {"typer"}
BEYOND_TORCH = """
import json, sys
import torch
before = set(sys.modules)
{run}
print(json.dumps(sorted(set(sys.modules) - before)))
"""
HELP = """
from typer.testing import CliRunner
from ocvtp_kernels.cli import app
for command in ([], ["prune"], ["features"], ["train"], ["evaluate"], ["flops"]):
    assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0, command
"""


def imported_by(run: str) -> set[str]:
    """The modules that these lines import beyond those of `import torch`."""
    script = BEYOND_TORCH.format(run=run)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("run", "allowed"), [("import ocvtp_kernels", set()), (HELP, IN_HELP)], ids=["package", "help"]
)
def test_nothing_heavy_is_imported_before_it_is_used(run: str, allowed: set[str]) -> None:
    imported = imported_by(run)
    assert "ocvtp_kernels" in imported
    assert not imported & (set(HEAVY) - allowed)


def test_what_is_heavy_is_seen() -> None:
    assert "torch._dynamo" in imported_by("import ocvtp_kernels, torch._dynamo")
