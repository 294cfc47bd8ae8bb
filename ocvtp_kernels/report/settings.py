"""The table of settings: the package as people use it, plain PyTorch used alike beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ocvtp_kernels.markdown import markdown_table
from ocvtp_kernels.report.fields import Field, Times, read_times
from ocvtp_kernels.report.text import duration, three_digits, times_text

LEGEND = (
    "The package as people use it, and plain PyTorch used in the same way, in turns: median (20th "
    "to 80th percentile). Times of one thread are CPU time. Plain is the module that nobody froze, "
    "or the op's reference; of a new process it is one that imports torch alone."
)
HEADER = ("setting", "what", "threads", "ours", "plain / ours")
UNITS = ("s", "bytes")


class SettingRow(NamedTuple):
    """One way to use the package; the figures are None where the correctness gate refused it."""

    setting: str
    what: str
    threads: int
    unit: str  # one of `UNITS`
    ours: Times | None
    plain: Times | None
    gate_note: str

    @property
    def key(self) -> tuple[object, ...]:
        """Unique among the rows of a file."""
        return self.setting, self.what, self.threads

    @property
    def ratio(self) -> float | None:
        """Plain PyTorch's median over ours: above 1, ours is less."""
        if self.ours is None or self.plain is None:
            return None
        return self.plain.median / self.ours.median


def read_row(row: Field) -> SettingRow:
    """A row of a result file.

    Raises:
        ResultError: it is malformed.
    """
    gate, unit = row.get("gate"), row.get("unit").text(UNITS)
    ours = plain = None
    if gate.get("passed").flag():
        ours = read_times(row, "median", "p20", "p80")
        plain = read_times(row, "plain_median", "plain_p20", "plain_p80")
    return SettingRow(
        row.get("setting").text(),
        row.get("what").text(),
        row.get("threads").count(),
        unit,
        ours,
        plain,
        gate.get("note").string(),
    )


def losses(rows: Sequence[SettingRow]) -> list[tuple[float, str]]:
    """Where plain PyTorch takes less, with its share of ours, worst first."""
    lost = [(ratio, row) for row in rows if (ratio := row.ratio) is not None and ratio < 1]
    return [(ratio, _loss_text(row)) for ratio, row in sorted(lost, key=lambda pair: pair[0])]


def refusals(rows: Sequence[SettingRow]) -> list[str]:
    """What did not pass the gate, and why."""
    return [
        f"{row.setting}, {row.what}: refused, {row.gate_note}" for row in rows if row.ours is None
    ]


def table(rows: Sequence[SettingRow]) -> list[tuple[str, ...]]:
    """The cells under `HEADER`."""
    return [_cells(row) for row in rows]


def readme(rows: Sequence[SettingRow]) -> list[str]:
    """The blocks for the README."""
    folded = ("<details><summary>All settings</summary>", "</details>")
    return ["Settings. " + LEGEND, folded[0], markdown_table(HEADER, table(rows)), folded[1]]


def _cells(row: SettingRow) -> tuple[str, ...]:
    if row.ours is None or row.ratio is None:
        return row.setting, row.what, str(row.threads), "refused", ""
    shown = times_text(row.ours) if row.unit == "s" else _megabytes(row.ours.median)
    return row.setting, row.what, str(row.threads), shown, f"{three_digits(row.ratio)}×"


def _loss_text(row: SettingRow) -> str:
    assert row.ours is not None and row.plain is not None and row.ratio is not None
    shown = duration if row.unit == "s" else _megabytes
    inside = row.plain.p20 / row.ours.p80 <= 1 <= row.plain.p80 / row.ours.p20
    threads = f"{row.threads} thread{'s' if row.threads > 1 else ''}"
    return (
        f"{three_digits(1 / row.ratio)}× plain PyTorch's: {row.what}, {row.setting}, {threads} "
        f"({shown(row.ours.median)} against {shown(row.plain.median)}"
        f"{'; within the spread' if inside else ''})"
    )


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.0f} MB"
