"""The compile report of the CUDA C++ kernels: ``python -m bench csrc [--archs 75,90]``.

Every kernel that a binding launches, as ``csrc/device.cu`` lists them, compiled for every GPU
architecture, printed, and held against ``bench/budgets/csrc.json``; the command ends with status 1
where one breaks it, with 2 where a tool is missing. Registers and bytes of *stack* are a thread's;
bytes of static *shared* memory are a block's, and 1,024 of them the driver's from sm_90 on. Dynamic
shared memory is a launch's choice. sm_70 and sm_75 have no bfloat16. With ``--write-budget`` the
numbers become the new budget, where one got worse with the reason of ``--because``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence

from bench.compiled.budget import FOLDER, Budget, Group, Slack, beyond, by_arch, make_parser, settle
from bench.compiled.csrc_binaries import ARCHS, Row, Tools, compile_all, compiler_of

BUDGET = FOLDER / "csrc.json"
SLACKS = {"registers": Slack(minimum=16)}
MAX_SHARED = 49_152  # static bytes of a block
WITHOUT_PRODUCT = (
    "attention_row_kernel", "bias_gelu_kernel", "gru_gates_kernel", "layer_norm_kernel",
    "mean_kernel", "norm_slots_kernel", "resolve_kernel", "start_kernel", "sum_parts_kernel",
)  # fmt: skip


def multiplies_halves(row: Row) -> bool:
    """Whether a row has to have a matrix instruction."""
    name, _, arguments = row.kernel.partition("<")
    of = arguments.rstrip(">").split(", ")
    if row.arch < 80 and "bfloat16" in of:
        return False
    return name not in WITHOUT_PRODUCT and not {"half", "bfloat16"}.isdisjoint(of)


def groups_of(rows: Iterable[Row], compilers: Mapping[str, str]) -> dict[str, Group]:
    return by_arch(rows, lambda arch: f"{compiler_of(arch)} {compilers[compiler_of(arch)]}")


def violations(rows: Sequence[Row], budget: Budget, compilers: Mapping[str, str]) -> list[str]:
    """A sentence for everything that breaks the budget.

    What was recorded counts only where it was made by this version of the compiler; there every
    recorded kernel has to be among the rows of its architecture.
    """
    found = beyond(rows, lambda _: MAX_SHARED)
    for row in rows:
        if not row.failure and row.instruction == "none" and multiplies_halves(row):
            name = f"sm_{row.arch} {row.key}"
            found.append(f"{name}: has no instruction that multiplies matrices")
    now = groups_of(rows, compilers)
    for name, group in now.items():
        if recorded := budget.recorded(name, group.version):
            for gone in sorted(recorded.rows.keys() - group.rows.keys()):
                found.append(f"{name} {gone}: is recorded, but there is no such kernel")
    return found + budget.violations(now, SLACKS)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = make_parser("csrc", __doc__, ARCHS).parse_args(arguments)
    tools = Tools.here()
    if missing := list(dict.fromkeys(filter(None, map(tools.missing_for, given.archs)))):
        print(". ".join(missing) + ".", file=sys.stderr)
        return 2
    rows, compilers = compile_all(given.archs, tools), tools.versions()
    now = groups_of(rows, compilers)
    return settle(BUDGET, now, SLACKS, given, lambda budget: violations(rows, budget, compilers))
