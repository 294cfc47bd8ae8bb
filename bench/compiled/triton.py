"""The compile report: ``python -m bench compiled [--archs 90,100] [--short] [--op prune]``.

Every Triton kernel and tile, compiled ahead of time for every architecture, printed, and held
against ``bench/budgets/triton.json``; the command ends with status 1 where one breaks it. Registers
and bytes of *stack* are a thread's, bytes of *shared* memory a program's. The rest is counted in
the machine code, for a warp: instructions of a *step* of the main loop, those on *tensor* cores
among them and the *cycles* that these take one; asynchronous *copies* a step, and of their groups
those still *flying* as the loop waits; instructions *outside* of the loop.

A kernel that the budget does not have is named, and held to the rules that need no number of it.
With ``--write-budget`` the numbers become the new budget. Where one got worse, ``--because "a
sentence"`` has to say why, and the budget keeps it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version

from bench.compiled.binaries import STRENGTH, Row, compile_all
from bench.compiled.budget import FOLDER, Budget, Group, Slack, beyond, by_arch, make_parser, settle
from bench.compiled.launches import plan
from bench.compiled.sums import size_of
from bench.ops import BENCHES
from ocvtp_kernels.triton_common.archs import ARCHS
from ocvtp_kernels.triton_common.launch import interpreting

BUDGET = FOLDER / "triton.json"
SLACKS = {
    "registers": Slack(minimum=16),
    "shared": Slack(),
    "step": Slack(0.05, 8),
    "outside": Slack(0.05, 8),
    "flying": Slack(falls=True),
}
# Kernels that multiply no matrices.
WITHOUT_PRODUCT = (
    "argmax_reduce", "centrifugal", "deltas", "dpp", "facility", "farthest", "gain",
    "gates_backward", "layer_norm", "match", "mmr", "nearest", "pivot", "pivots", "resolve",
    "scatter", "start",
)  # fmt: skip
# The instruction of the others in half precision, where newer than mma.sync; a tile needs so many
# rows for it.
INSTRUCTIONS = {90: "wgmma", 100: "tcgen05"}
ROWS_FOR_NEWER = 64


def expected_instruction(row: Row) -> str:
    """The matrix instruction that a row has at least."""
    if row.dtype == "float32" or row.kernel in WITHOUT_PRODUCT:
        return "none"
    sides = re.findall(r"\b(?:SLOT_BLOCK_M|BLOCK_M|BLOCK_SLOTS|BLOCK_QUERIES) (\d+)", row.tile)
    if min(map(int, sides), default=0) < ROWS_FOR_NEWER:
        return "mma.sync"
    return INSTRUCTIONS.get(row.arch, "mma.sync")


def groups_of(rows: Iterable[Row], triton: str) -> dict[str, Group]:
    return by_arch(rows, lambda _: f"Triton {triton}")


def without(rows: Iterable[Row], budget: Budget) -> list[str]:
    """The kernels among these rows of which no architecture has a row recorded."""
    known = {key.split()[0] for group in budget.groups.values() for key in group.rows}
    return sorted({row.kernel for row in rows} - known)


def violations(rows: Sequence[Row], budget: Budget, triton: str) -> list[str]:
    """A sentence for everything that breaks the budget.

    What was recorded counts only where it was made by this version of Triton. Of a kernel that is
    not in the budget only the stack, the shared memory and the order of sums count.
    """
    new = without(rows, budget)
    known = [row for row in rows if row.kernel not in new]
    found = beyond(rows, lambda arch: ARCHS[arch].shared_bytes)
    for row in known:
        expected = expected_instruction(row)
        if not row.failure and STRENGTH.index(row.instruction) < STRENGTH.index(expected):
            name = f"sm_{row.arch} {row.key}"
            found.append(f"{name}: matrix instruction was {expected}, now {row.instruction}")
    return found + budget.violations(groups_of(known, triton), SLACKS) + unlike(rows)


def unlike(rows: Iterable[Row]) -> list[str]:
    """A sentence for every kernel, dtype and size whose tiles sum in different orders."""
    groups: defaultdict[tuple[int, str, str, str], dict[tuple[str, ...], str]] = defaultdict(dict)
    for row in rows:
        for order in row.orders:
            groups[row.arch, row.kernel, row.dtype, size_of(row.tile)].setdefault(order, row.tile)
    return [
        f"sm_{arch} {kernel} {size}, {dtype}: tiles sum in {len(orders)} orders, so results "
        "are not batch-invariant: "
        + "; ".join(f"{tile}: {', '.join(order)}" for order, tile in orders.items())
        for (arch, kernel, dtype, size), orders in groups.items()
        if len(orders) > 1
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = make_parser("compiled", __doc__, list(ARCHS))
    parser.add_argument("--short", action="store_true", help="the part that the tests run")
    parser.add_argument("--op", choices=BENCHES, help="the kernels of this op alone")
    given = parser.parse_args(arguments)
    if interpreting():
        parser.error("Triton is in its interpreter, which compiles nothing: unset TRITON_INTERPRET")
    if given.write_budget and (given.short or given.op):
        parser.error("--write-budget: a part of the report leaves out rows that the budget has")
    parts = plan(given.archs, given.short)
    if given.op is not None:
        parts = [part._replace(launchers=BENCHES[given.op].launchers, less=()) for part in parts]
    rows, triton = compile_all(parts), version("triton")
    for kernel in without(rows, Budget.read(BUDGET)):
        print(f"{kernel}: no budget yet; --write-budget records one")
    now = groups_of(rows, triton)
    return settle(BUDGET, now, SLACKS, given, lambda budget: violations(rows, budget, triton))
