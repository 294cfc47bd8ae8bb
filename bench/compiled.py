"""The compile report: ``python -m bench.compiled [--chips 90,100] [--short] [--output page.md]``.

Every Triton kernel and tile, compiled ahead of time for every chip and held against
``bench/budgets/compiled.json``; the command ends with status 1 where one breaks it. With
``--write-budget`` the registers become the new budget; the rules stay as they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from bench.compiled_binaries import STRENGTH, Row, compile_all
from bench.compiled_launches import plan
from bench.results import ROOT
from ocvtp_kernels.files import write_aside
from ocvtp_kernels.gpu.chips import CHIPS
from ocvtp_kernels.gpu.launch import interpreting

BUDGET = ROOT / "bench" / "budgets" / "compiled.json"
COLUMNS = (
    "kernel",
    "tile",
    "dtype",
    "warps",
    "stages",
    "registers",
    "stack",
    "shared",
    "instruction",
)


@dataclasses.dataclass(frozen=True)
class Rules:
    """What holds for every row.

    Attributes:
        stack: bytes of stack a thread may have.
        register_growth: registers a thread may have more than recorded.
        without_product: kernels that multiply no matrices.
        instructions: by chip, the matrix instruction of the others in half precision.
        rows_for_newer: with fewer rows a tile cannot use an instruction newer than mma.sync.
    """

    stack: int
    register_growth: int
    without_product: list[str]
    instructions: dict[str, str]
    rows_for_newer: int


@dataclasses.dataclass(frozen=True)
class Budget:
    """The rules, and each row's registers as one version of Triton compiled them.

    Attributes:
        triton: that version.
        rules: hold for every version.
        registers: by chip and `Row.key`.
    """

    triton: str
    rules: Rules
    registers: dict[str, dict[str, int]]

    @classmethod
    def read(cls, path: Path) -> Budget:
        """Reads a budget file."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(values["triton"], Rules(**values["rules"]), values["registers"])

    def write(self, path: Path) -> None:
        """Writes the file, never by halves."""
        text = json.dumps(dataclasses.asdict(self), indent=1) + "\n"
        write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))

    def with_rows(self, rows: Iterable[Row], triton: str) -> Budget:
        """The registers of these rows recorded, in place of all others of their chips."""
        found: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for row in rows:
            if not row.failure:
                found[str(row.chip)][row.key] = row.registers
        return Budget(triton, self.rules, {**self.registers, **found})


def expected_instruction(row: Row, rules: Rules) -> str:
    """The matrix instruction that a row has at least."""
    if row.dtype == "float32" or row.kernel in rules.without_product:
        return "none"
    sides = re.findall(r"\b(?:SLOT_ROWS|ROWS|SLOTS|QUERIES) (\d+)", row.tile)
    if min(map(int, sides), default=0) < rules.rows_for_newer:
        return "mma.sync"
    return rules.instructions[str(row.chip)]


def violations(rows: Iterable[Row], budget: Budget, triton: str) -> list[str]:
    """A sentence for everything that breaks the budget.

    Registers count only where ``triton``, the version that compiled the rows, is the budget's.
    """
    rules = budget.rules
    found: list[str] = []
    for row in rows:
        name = f"sm_{row.chip} {row.key}"
        if row.failure:
            found.append(f"{name}: does not compile: {row.failure}")
            continue
        if row.stack > rules.stack:
            found.append(f"{name}: stack was {rules.stack} bytes, now {row.stack}: it spills")
        most = CHIPS[row.chip].shared_bytes
        if row.shared > most:
            found.append(f"{name}: shared memory is {row.shared} bytes, the chip has {most}")
        expected = expected_instruction(row, rules)
        if STRENGTH.index(row.instruction) < STRENGTH.index(expected):
            found.append(f"{name}: matrix instruction was {expected}, now {row.instruction}")
        if triton != budget.triton:
            continue
        recorded = budget.registers.get(str(row.chip), {}).get(row.key)
        if recorded is None:
            found.append(f"{name}: no registers are recorded; --write-budget records them")
        elif row.registers > recorded + rules.register_growth:
            found.append(f"{name}: registers were {recorded}, now {row.registers}")
    return found


def page(rows: Sequence[Row], triton: str) -> str:
    """The report in Markdown, a table a chip."""
    lines = [
        "# What the kernels compile to",
        "",
        f"Compiled by Triton {triton} for chips that need not be there. Registers and bytes of",
        "stack are a thread's, bytes of shared memory a program's. A stack means that registers",
        "spill.",
        "",
        "This page is generated by `python -m bench.compiled --output docs/compiled.md`.",
    ]
    for chip in dict.fromkeys(row.chip for row in rows):
        lines += ["", f"## sm_{chip}", "", _line(COLUMNS), _line("---" for _ in COLUMNS)]
        for row in sorted((row for row in rows if row.chip == chip), key=_order):
            cells = ("" if cell is None else str(cell) for cell in row[1 : 1 + len(COLUMNS)])
            lines.append(_line(cells) if not row.failure else _failure(row))
    return "\n".join(lines) + "\n"


def _order(row: Row) -> tuple[str, str, str]:
    return row.kernel, row.dtype, row.tile


def _failure(row: Row) -> str:
    return _line((row.kernel, row.tile, row.dtype, *("" for _ in range(5)), "does not compile"))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def chips_of(text: str) -> list[int]:
    """Chips from ``90,100``."""
    chips = [int(part) if part.isdigit() else -1 for part in text.split(",")]
    if not set(chips) <= set(CHIPS):
        known = ", ".join(map(str, CHIPS))
        raise argparse.ArgumentTypeError(f"expected some of {known}, got {text!r}")
    return chips


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.compiled", description=__doc__)
    parser.add_argument("--chips", type=chips_of, default=list(CHIPS), help="such as 90,100; all")
    parser.add_argument("--short", action="store_true", help="the part that the tests run")
    parser.add_argument("--output", type=Path, help="the page to write")
    parser.add_argument("--write-budget", action="store_true", help="record these registers")
    given = parser.parse_args(arguments)
    if interpreting():
        parser.error("Triton is in its interpreter, which compiles nothing: unset TRITON_INTERPRET")
    triton = version("triton")
    budget = Budget.read(BUDGET)
    if given.write_budget and given.short:
        parser.error("--write-budget: a short report leaves out rows that the budget has")
    if given.write_budget and triton != budget.triton and set(given.chips) != set(CHIPS):
        parser.error(
            f"--write-budget: the other chips are recorded with Triton {budget.triton}, "
            f"this is {triton}; record all chips"
        )
    rows = compile_all(plan(given.chips, given.short))
    if given.write_budget:
        budget = budget.with_rows(rows, triton)
        budget.write(BUDGET)
    if given.output is not None:
        text = page(rows, triton)
        write_aside(given.output, lambda aside: aside.write_text(text, encoding="utf-8"))
    if triton != budget.triton:
        print(f"registers are not compared: recorded with Triton {budget.triton}, this is {triton}")
    broken = violations(rows, budget, triton)
    for sentence in broken:
        print(sentence)
    print(f"{len(rows)} kernels and tiles, {len(broken)} violations")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
