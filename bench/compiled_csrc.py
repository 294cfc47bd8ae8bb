"""The compile report of the CUDA C++ kernels: ``python -m bench.compiled_csrc [--chips 75,90]``.

Every kernel that a binding launches, as ``csrc/device.cu`` lists them, compiled for every GPU
architecture and held against ``bench/budgets/compiled_csrc.json``; the command ends with status 1
where one breaks it, with 2 where a tool is missing. With ``--write-budget`` the registers become
the new budget; the rules stay as they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bench.csrc_binaries import ARCHS, Row, Tools, compile_all, compiler_of
from bench.results import ROOT
from ocvtp_kernels.files import atomic_write

BUDGET = ROOT / "bench" / "budgets" / "compiled_csrc.json"
COLUMNS = ("kernel", "registers", "stack", "shared", "instruction")


@dataclasses.dataclass(frozen=True)
class Rules:
    """What holds for every row.

    Attributes:
        stack: bytes of stack a thread may have.
        register_growth: registers a thread may have more than recorded.
        shared: static bytes a block may have.
        without_product: kernels that multiply no matrices; the others have, in half precision, an
            instruction for it.
    """

    stack: int
    register_growth: int
    shared: int
    without_product: list[str]


@dataclasses.dataclass(frozen=True)
class Budget:
    """The rules, and each kernel's registers as one version of each compiler has them.

    Attributes:
        compilers: those versions.
        rules: hold for every version.
        registers: by architecture and kernel.
    """

    compilers: dict[str, str]
    rules: Rules
    registers: dict[str, dict[str, int]]

    @classmethod
    def read(cls, path: Path) -> Budget:
        """Reads a budget file."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(values["compilers"], Rules(**values["rules"]), values["registers"])

    def write(self, path: Path) -> None:
        """Writes the file, never by halves."""
        text = json.dumps(dataclasses.asdict(self), indent=1) + "\n"
        atomic_write(path, text)

    def with_rows(self, rows: Iterable[Row], compilers: Mapping[str, str]) -> Budget:
        """The registers of these rows recorded, in place of all others of their architectures."""
        found: defaultdict[str, dict[str, int]] = defaultdict(dict)
        used = {}
        for row in rows:
            if not row.failure:
                found[str(row.arch)][row.kernel] = row.registers
                used[compiler_of(row.arch)] = compilers[compiler_of(row.arch)]
        ordered = {arch: dict(sorted(kernels.items())) for arch, kernels in found.items()}
        registers = {**self.registers, **ordered}
        return Budget({**self.compilers, **used}, self.rules, registers)


def multiplies_halves(row: Row, rules: Rules) -> bool:
    """Whether a row has to have a matrix instruction."""
    name, _, arguments = row.kernel.partition("<")
    of = arguments.rstrip(">").split(", ")
    if row.arch < 80 and "bfloat16" in of:
        return False
    return name not in rules.without_product and not {"half", "bfloat16"}.isdisjoint(of)


def violations(rows: Iterable[Row], budget: Budget, compilers: Mapping[str, str]) -> list[str]:
    """A sentence for everything that breaks the budget.

    Registers count only where the version in ``compilers``, which compiled the rows, is the
    budget's; there every recorded kernel has to be among the rows of its architecture.
    """
    rules = budget.rules
    found: list[str] = []
    kernels: defaultdict[int, set[str]] = defaultdict(set)
    for row in rows:
        name = f"sm_{row.arch} {row.kernel}"
        if row.failure:
            found.append(f"{name}: does not compile: {row.failure}")
            continue
        if row.stack > rules.stack:
            found.append(f"{name}: stack was {rules.stack} bytes, now {row.stack}: it spills")
        if row.shared > rules.shared:
            found.append(f"{name}: shared memory is {row.shared} bytes, allowed are {rules.shared}")
        if row.instruction == "none" and multiplies_halves(row, rules):
            found.append(f"{name}: has no instruction that multiplies matrices")
        if compilers[compiler_of(row.arch)] != budget.compilers[compiler_of(row.arch)]:
            continue
        kernels[row.arch].add(row.kernel)
        recorded = budget.registers.get(str(row.arch), {}).get(row.kernel)
        if recorded is None:
            found.append(f"{name}: no registers are recorded; --write-budget records them")
        elif row.registers > recorded + rules.register_growth:
            found.append(f"{name}: registers were {recorded}, now {row.registers}")
    for arch, here in kernels.items():
        for gone in sorted(budget.registers.get(str(arch), {}).keys() - here):
            found.append(f"sm_{arch} {gone}: is recorded, but there is no such kernel")
    return found


def page(rows: Sequence[Row], compilers: Mapping[str, str]) -> str:
    """The report in Markdown, a table a GPU architecture."""
    versions = " and ".join(f"{name} {number}" for name, number in sorted(compilers.items()))
    lines = [
        "# What the CUDA C++ kernels compile to",
        "",
        f"Compiled by {versions} for GPUs that need not be there. Registers and",
        "bytes of stack are a thread's; bytes of static shared memory are a block's, and 1,024 of",
        "them the driver's from sm_90 on. A stack means that registers spill. Dynamic shared",
        "memory is a launch's choice and not in the tables. sm_70 and sm_75 have no bfloat16.",
        "",
        "This page is generated by `python -m bench.compiled_csrc --output docs/compiled_csrc.md`.",
    ]
    for arch in dict.fromkeys(row.arch for row in rows):
        lines += ["", f"## sm_{arch}", "", _line(COLUMNS), _line("---" for _ in COLUMNS)]
        for row in sorted(row for row in rows if row.arch == arch):
            cells = map(str, row[1 : 1 + len(COLUMNS)])
            lines.append(_line(cells) if not row.failure else _failure(row))
    return "\n".join(lines) + "\n"


def _failure(row: Row) -> str:
    return _line((row.kernel, *("" for _ in COLUMNS[2:]), "does not compile"))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def archs_of(text: str) -> list[int]:
    """Architectures from ``75,90``."""
    archs = [int(part) if part.isdigit() else -1 for part in text.split(",")]
    if not set(archs) <= set(ARCHS):
        known = ", ".join(map(str, ARCHS))
        raise argparse.ArgumentTypeError(f"expected some of {known}, got {text!r}")
    return archs


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.compiled_csrc", description=__doc__)
    parser.add_argument("--chips", type=archs_of, default=list(ARCHS), help="such as 75,90; all")
    parser.add_argument("--output", type=Path, help="the page to write")
    parser.add_argument("--write-budget", action="store_true", help="record these registers")
    given = parser.parse_args(arguments)
    tools = Tools.here()
    if missing := list(dict.fromkeys(filter(None, map(tools.missing_for, given.chips)))):
        print(". ".join(missing) + ".", file=sys.stderr)
        return 2
    compilers = {
        name: number
        for name, number in tools.versions().items()
        if name in map(compiler_of, given.chips)
    }
    budget = Budget.read(BUDGET)
    changed = [name for name in compilers if compilers[name] != budget.compilers[name]]
    for name in changed:
        all_of_it = {arch for arch in ARCHS if compiler_of(arch) == name}
        if given.write_budget and not all_of_it <= set(given.chips):
            parser.error(
                f"--write-budget: the other GPUs are recorded with {name} "
                f"{budget.compilers[name]}, this is {compilers[name]}; record all GPUs"
            )
    rows = compile_all(given.chips, tools)
    if given.write_budget:
        budget = budget.with_rows(rows, compilers)
        budget.write(BUDGET)
    if given.output is not None:
        text = page(rows, compilers)
        atomic_write(given.output, text)
    for name in changed:
        if not given.write_budget:
            recorded = budget.compilers[name]
            print(f"registers of {name} {compilers[name]} are not compared to those of {recorded}")
    broken = violations(rows, budget, compilers)
    for sentence in broken:
        print(sentence)
    print(f"{len(rows)} kernels, {len(broken)} violations")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
