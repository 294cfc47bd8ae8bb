"""Comparisons, the list of losses, and the README's tables: figures as text, none typed by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ocvtp_kernels.report import end_to_end, selectors
from ocvtp_kernels.report.fields import Times
from ocvtp_kernels.report.results import KINDS, MicroRow, ResultFile, Workload
from ocvtp_kernels.report.text import duration, markdown, three_digits, times_text

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
README_LOSSES = 5
UNMEASURED = {
    "e2e": "End to end has not been measured on this device.",
    "selectors": "The selectors have not been measured on this device.",
}
PUBLISHED_IN_DIM, PUBLISHED_SLOT_DIM = 1024, 512


@dataclass(frozen=True)
class Comparison:
    """A baseline's time over ours on one workload: above 1, ours is faster."""

    op: str
    direction: str
    workload: Workload
    baseline: str
    ours: Times
    theirs: Times

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return self.theirs.median / self.ours.median

    @property
    def low(self) -> float:
        """The ratio at its worst: their 20th percentile over our 80th."""
        return self.theirs.p20 / self.ours.p80

    @property
    def high(self) -> float:
        """The ratio at its best: their 80th percentile over our 20th."""
        return self.theirs.p80 / self.ours.p20

    @property
    def is_loss(self) -> bool:
        """Whether the baseline's median is below ours."""
        return self.ratio < 1

    @property
    def is_within_spread(self) -> bool:
        """Whether 1 lies inside the spread, so that another run may turn it round."""
        return self.low <= 1 <= self.high


def compare(rows: Sequence[MicroRow]) -> list[Comparison]:
    """Every baseline with a time beside ours, in the rows' order."""
    ours = {_place(row): row.times for row in rows if row.is_ours and row.times is not None}
    return [
        Comparison(*_place(row), row.variant, ours[_place(row)], row.times)
        for row in rows
        if not row.is_ours and row.times is not None and _place(row) in ours
    ]


def losses(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Where a baseline is faster than ours, worst first."""
    return sorted((c for c in comparisons if c.is_loss), key=lambda c: c.ratio)


def without_ours(rows: Sequence[MicroRow]) -> list[tuple[str, str, Workload]]:
    """Op, direction and workload wherever a baseline has a time and ours has none."""
    ours = {_place(row) for row in rows if row.is_ours and row.times is not None}
    return list(
        dict.fromkeys(
            _place(row) for row in rows if row.times is not None and _place(row) not in ours
        )
    )


def fewest_slots(rows: Sequence[MicroRow]) -> list[MicroRow]:
    """Of each op's rows at each N, those with the fewest slots measured there."""
    fewest: dict[tuple[object, ...], int] = {}
    for row in rows:
        slots = row.workload.num_slots or 0
        fewest[_width(row)] = min(fewest.get(_width(row), slots), slots)
    return [row for row in rows if (row.workload.num_slots or 0) == fewest[_width(row)]]


def _width(row: MicroRow) -> tuple[object, ...]:
    w = row.workload
    return row.op, w.num_tokens, w.in_dim, w.slot_dim


def _place(row: MicroRow) -> tuple[str, str, Workload]:
    return row.op, row.direction, row.workload


def ratio_text(comparison: Comparison) -> str:
    """The ratio with its spread."""
    low, mid, high = (three_digits(c) for c in (comparison.low, comparison.ratio, comparison.high))
    return f"{mid}× ({low} to {high})"


def loss_text(comparison: Comparison) -> str:
    """One loss, said plainly."""
    c = comparison
    note = "; within the spread" if c.is_within_spread else ""
    return (
        f"{three_digits(1 / c.ratio)}× {c.baseline}'s time: {c.op} {c.direction}, "
        f"{workload_text(c.workload)} ({duration(c.ours.median)} against "
        f"{duration(c.theirs.median)}{note})"
    )


def workload_text(workload: Workload, dtype: bool = True) -> str:
    """Sizes in the project's letters: B images, N tokens, K slots, T kept."""
    w = workload
    parts = [f"B {w.batch}", f"N {w.num_tokens}"]
    parts += [] if w.num_slots is None else [f"K {w.num_slots}"]
    parts += [] if w.budget in (None, w.num_slots) else [f"T {w.budget}"]
    parts += [width] if (width := width_text(w)) else []
    return " · ".join([*parts, *([w.dtype] if dtype else [])])


def width_text(workload: Workload) -> str:
    """The widths where they are not the published ones."""
    named = (("C", workload.in_dim, PUBLISHED_IN_DIM), ("D", workload.slot_dim, PUBLISHED_SLOT_DIM))
    return " · ".join(f"{name} {size}" for name, size, usual in named if size not in (None, usual))


def summary(file: ResultFile, comparisons: Sequence[Comparison]) -> str:
    """How often we lose, and how much was refused, in a sentence or two."""
    lost = sum(c.is_loss for c in comparisons)
    if not comparisons:
        said = "No baseline has a time beside ours."
    elif lost == 0:
        said = f"Nowhere; no baseline is faster in any comparison ({len(comparisons)})."
    else:
        said = f"A baseline is faster in {lost} of {len(comparisons)} comparisons."
    refused = len(file.refused())
    return said + (
        f" {refused} of {len(file.micro)} rows were refused by the correctness gate."
        if refused
        else ""
    )


def provenance(file: ResultFile) -> str:
    """Driver, versions, commit and date of a result file."""
    driver = "no driver" if file.driver is None else f"driver {file.driver}"
    versions = ", ".join(f"{name} {version}" for name, version in file.versions.items())
    head, dash, dirty = file.commit.partition("-")
    return f"{driver}; {versions}; commit {head[:12]}{dash}{dirty}; {file.date}"


def readme_tables(results: dict[str, list[ResultFile]]) -> str:
    """What stands between the README's markers: a device's figures, kind by kind."""
    blocks: list[str] = []
    for files in results.values():
        blocks.append(f"**{files[0].device}**")
        for file in sorted(files, key=lambda file: KINDS.index(file.kind)):
            blocks += _readme_of(file)
            blocks.append(f"<sub>{file.kind}: {provenance(file)}</sub>")
        kinds = {file.kind for file in files}
        blocks += [sentence for kind, sentence in UNMEASURED.items() if kind not in kinds]
    return "\n\n".join(blocks)


def _readme_of(file: ResultFile) -> list[str]:
    if file.kind == "micro":
        return _readme_micro(file)
    return end_to_end.readme(file.e2e) if file.kind == "e2e" else selectors.readme(file.selectors)


def _readme_micro(file: ResultFile) -> list[str]:
    comparisons = compare(file.micro)
    blocks = []
    if rows := [row for row in file.measured() if (row.op, row.direction) == ("prune", "forward")]:
        mine = [c for c in comparisons if (c.op, c.direction) == ("prune", "forward")]
        ratios = {(c.workload, c.baseline): ratio_text(c) for c in mine}
        baselines = list(dict.fromkeys(c.baseline for c in mine))
        blocks.append(
            "`prune`, forward, at the fewest slots measured for each N: time per call, median "
            "(20th to 80th percentile), and each baseline's time over ours."
        )
        blocks.append(
            markdown(
                ["workload", "ours", *(f"{name} / ours" for name in baselines)],
                [
                    [
                        workload_text(row.workload),
                        times_text(row.times),
                        *(ratios.get((row.workload, name), "none") for name in baselines),
                    ]
                    for row in fewest_slots(rows)
                    if row.is_ours and row.times is not None
                ],
            )
        )
    lost = losses(comparisons)
    blocks.append("Where we lose, over all ops and sizes: " + summary(file, comparisons))
    if lost:
        title = f"The worst {README_LOSSES}" if len(lost) > README_LOSSES else "All of them"
        listed = "\n".join(f"* {loss_text(c)}" for c in lost[:README_LOSSES])
        blocks.append(f"{title}:\n\n{listed}")
    return blocks


def rewrite_between_markers(text: str, inside: str) -> str:
    """``text`` with what stands between the two markers replaced.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(f"expected {START} and then {END}, once each")
    before, after = text.split(START)[0], text.split(END)[1]
    return f"{before}{START}\n{inside}\n{END}{after}"
