"""The table of settings: the package as people use it, plain PyTorch used alike beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from ocvtp_kernels.markdown import markdown_table
from ocvtp_kernels.report.fields import GATED, Gate, Members, Text, Times, Versus
from ocvtp_kernels.report.text import duration, three_digits, times_text

LEGEND = (
    "The package as people use it, and plain PyTorch used in the same way, in turns: median (20th "
    "to 80th percentile). Times of one thread are CPU time. Plain is the module that nobody froze, "
    "or the op's reference; of a new process it is one that imports torch alone."
)
HEADER = ("setting", "what", "threads", "ours", "plain / ours")
OURS = Members(Times, ("median", "p20", "p80"))
PLAIN = Members(Times, ("plain_median", "plain_p20", "plain_p80"))


@dataclass(frozen=True)
class SettingRow:
    """One way to use the package; the figures are None where the correctness gate refused it."""

    setting: Text
    what: Text
    threads: int
    unit: Literal["s", "bytes"]
    ours: Annotated[Times | None, GATED, OURS]
    plain: Annotated[Times | None, GATED, PLAIN]
    gate: Gate

    @property
    def key(self) -> tuple[object, ...]:
        """Unique among the rows of a file."""
        return self.setting, self.what, self.threads

    @property
    def versus(self) -> Versus | None:
        """Ours and plain PyTorch."""
        return Versus(self.plain, self.ours) if self.plain and self.ours else None


Rows = Sequence[SettingRow]


def losses(rows: Rows) -> list[tuple[float, str]]:
    """Where plain PyTorch takes less, with its share of ours, worst first."""
    pairs = [(row, versus) for row in rows if (versus := row.versus) is not None]
    lost = [(versus.ratio, _loss_text(row, versus)) for row, versus in pairs if versus.ratio < 1]
    return sorted(lost, key=lambda pair: pair[0])


def refusals(rows: Rows) -> list[str]:
    """What did not pass the gate, and why."""
    return [
        f"{row.setting}, {row.what}: refused, {row.gate.note}" for row in rows if row.ours is None
    ]


def table(rows: Rows) -> list[tuple[str, ...]]:
    """The cells under `HEADER`."""
    return [_cells(row) for row in rows]


def readme(rows: Rows) -> list[str]:
    """The blocks for the README."""
    folded = ("<details><summary>All settings</summary>", "</details>")
    return ["Settings. " + LEGEND, folded[0], markdown_table(HEADER, table(rows)), folded[1]]


def _cells(row: SettingRow) -> tuple[str, ...]:
    head = row.setting, row.what, str(row.threads)
    if row.versus is None:
        return *head, "refused", ""
    ours = row.versus.ours
    shown = times_text(ours) if row.unit == "s" else _megabytes(ours.median)
    return *head, shown, f"{three_digits(row.versus.ratio)}×"


def _loss_text(row: SettingRow, versus: Versus) -> str:
    shown = duration if row.unit == "s" else _megabytes
    threads = f"{row.threads} thread{'s' if row.threads > 1 else ''}"
    return (
        f"{three_digits(1 / versus.ratio)}× plain PyTorch's: {row.what}, {row.setting}, {threads} "
        f"({shown(versus.ours.median)} against {shown(versus.theirs.median)}"
        f"{'; within the spread' if versus.is_within_spread else ''})"
    )


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.0f} MB"
