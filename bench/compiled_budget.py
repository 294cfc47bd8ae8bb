"""The budget of compiled kernels: rules for all, and recorded numbers for each kernel's tile."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.compiled_binaries import STRENGTH, Row
from bench.compiled_sums import size_of
from bench.growth import Slack, renewed, worse
from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.triton_common.archs import ARCHS

Entries = dict[str, dict[str, dict[str, float]]]


@dataclasses.dataclass(frozen=True)
class Rules:
    """What holds for every row.

    Attributes:
        stack: bytes of stack a thread may have.
        register_growth: registers a thread may have more than recorded.
        without_product: kernels that multiply no matrices.
        instructions: by architecture, the matrix instruction of the others in half precision.
        rows_for_newer: with fewer rows a tile cannot use an instruction newer than mma.sync.
        instruction_growth: share of the instructions recorded that there may be more.
    """

    stack: int
    register_growth: int
    without_product: list[str]
    instructions: dict[str, str]
    rows_for_newer: int
    instruction_growth: float = 0.05

    def slacks(self) -> dict[str, Slack]:
        """How far each number of a row may go the wrong way."""
        instructions = Slack(self.instruction_growth, 8)
        return {
            "registers": Slack(minimum=self.register_growth),
            "shared": Slack(),
            "step": instructions,
            "outside": instructions,
            "flying": Slack(falls=True),
        }


@dataclasses.dataclass(frozen=True)
class Budget:
    """The rules, and each row's numbers as one version of Triton compiled them.

    Attributes:
        triton: that version.
        rules: hold for every version.
        rows: numbers by architecture and `Row.key`, as `Row.numbers` gives them.
        reasons: by architecture and key, why these may be worse than the ones recorded before.
    """

    triton: str
    rules: Rules
    rows: Entries
    reasons: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Budget:
        """Reads a budget file."""
        values = json.loads(path.read_text(encoding="utf-8"))
        rules = Rules(**values["rules"])
        return cls(values["triton"], rules, values["rows"], values["reasons"])

    def write(self, path: Path) -> None:
        """Writes the file atomically, a line for each row."""
        text = json.dumps({**dataclasses.asdict(self), "rows": None}, indent=1)
        archs = ",\n".join(
            f"  {json.dumps(arch)}: {{\n"
            + ",\n".join(f"   {json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
            + "\n  }"
            for arch, rows in self.rows.items()
        )
        text = text.replace('"rows": null', f'"rows": {{\n{archs}\n }}') + "\n"
        atomic_write(path, text)

    def without(self, rows: Iterable[Row]) -> list[str]:
        """The kernels among these rows of which no architecture has a row recorded."""
        known = {key.split()[0] for recorded in self.rows.values() for key in recorded}
        return sorted({row.kernel for row in rows} - known)

    def worsened(self, rows: Iterable[Row]) -> dict[tuple[str, str], list[str]]:
        """What got worse, by architecture and key."""
        found = {}
        for row in rows:
            recorded = self.rows.get(str(row.arch), {}).get(row.key)
            if recorded is not None and not row.failure:
                said = worse(recorded, row.numbers(), self.rules.slacks())
                if said:
                    found[str(row.arch), row.key] = said
        return found

    def with_rows(self, rows: Sequence[Row], triton: str, why: str = "") -> Budget:
        """The numbers of these rows recorded, in place of all others of their architectures.

        Raises:
            ValueError: a row got worse, within a version of Triton, and ``why`` does not say why.
        """
        worsened = self.worsened(rows) if triton == self.triton else {}
        if worsened and not why:
            first = next(iter(worsened))
            raise ValueError(
                f"{len(worsened)} rows got worse, such as sm_{first[0]} {first[1]}: "
                f"{'; '.join(worsened[first])}. --because says why they may"
            )
        found: defaultdict[str, dict[str, dict[str, float]]] = defaultdict(dict)
        for row in rows:
            if not row.failure:
                found[str(row.arch)][row.key] = row.numbers()
        reasons = dict(self.reasons)
        for arch, its in found.items():
            old = self.reasons.get(arch, {}) if triton == self.triton else {}
            gone = {key: reason for key, reason in old.items() if key not in its}
            mine = {key: said for (at, key), said in worsened.items() if at == arch}
            reasons[arch] = renewed(old, gone, mine, why)
        reasons = {arch: its for arch, its in reasons.items() if its}
        return Budget(triton, self.rules, {**self.rows, **found}, reasons)


def expected_instruction(row: Row, rules: Rules) -> str:
    """The matrix instruction that a row has at least."""
    if row.dtype == "float32" or row.kernel in rules.without_product:
        return "none"
    sides = re.findall(r"\b(?:SLOT_BLOCK_M|BLOCK_M|BLOCK_SLOTS|BLOCK_QUERIES) (\d+)", row.tile)
    if min(map(int, sides), default=0) < rules.rows_for_newer:
        return "mma.sync"
    return rules.instructions[str(row.arch)]


def violations(rows: Sequence[Row], budget: Budget, triton: str) -> list[str]:
    """A sentence for everything that breaks the budget.

    What was recorded counts only where ``triton``, which compiled the rows, is the budget's. Of a
    kernel that is not in the budget only the stack, the shared memory and the order of sums count.
    """
    rules, new = budget.rules, budget.without(rows)
    found: list[str] = []
    for row in rows:
        name = f"sm_{row.arch} {row.key}"
        if row.failure:
            found.append(f"{name}: does not compile: {row.failure}")
            continue
        if row.stack > rules.stack:
            found.append(f"{name}: stack was {rules.stack} bytes, now {row.stack}: it spills")
        available = ARCHS[row.arch].shared_bytes
        if row.shared > available:
            found.append(f"{name}: shared memory is {row.shared} bytes, the GPU has {available}")
        if row.kernel in new:
            continue
        expected = expected_instruction(row, rules)
        if STRENGTH.index(row.instruction) < STRENGTH.index(expected):
            found.append(f"{name}: matrix instruction was {expected}, now {row.instruction}")
        if triton != budget.triton:
            continue
        recorded = budget.rows.get(str(row.arch), {}).get(row.key)
        if recorded is None:
            found.append(f"{name}: nothing is recorded; --write-budget records it")
        else:
            said = worse(recorded, row.numbers(), rules.slacks())
            found += [f"{name}: {each}" for each in said]
    return found + unlike(rows)


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
