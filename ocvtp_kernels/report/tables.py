"""Comparisons, the list of losses, and the README's tables: figures as text, none typed by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ocvtp_kernels.markdown import markdown_table
from ocvtp_kernels.report import end_to_end, selectors, settings
from ocvtp_kernels.report.drawing import KNOWN_VARIANTS
from ocvtp_kernels.report.fields import Times, Versus
from ocvtp_kernels.report.results import (
    KINDS,
    OP_KINDS,
    PIPELINE,
    MicroRow,
    ResultFile,
    Rows,
    Workload,
    graph_first,
    pipeline_file,
)
from ocvtp_kernels.report.text import bullets, duration, three_digits, times_text

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
README_LOSSES = 5
UNMEASURED = {
    "e2e": "End to end has not been measured on this device.",
    "selectors": "The selectors have not been measured on this device.",
}
CLOCKS = {"graph": ", by graph", "events": ", launched"}
CLOCK_LEGEND = (
    "By graph: a CUDA graph's replay; launched: calls from Python between CUDA events, which count "
    "the host where it is the slower (one of torch.compile replays a CUDA graph of its own)."
)
SHARE_LEGEND = (
    "Of the ceilings: the least time at the measured rates of copies and matrix products, over "
    "ours."
)
APART = (
    "torch.compile has a run of its own, ours again beside it, both on one set of inputs that may "
    "be in the cache."
)
PUBLISHED_IN_DIM, PUBLISHED_SLOT_DIM = 1024, 512


@dataclass(frozen=True)
class Comparison(Versus):
    """A baseline beside ours on one workload."""

    op: str
    direction: str
    workload: Workload
    baseline: str
    our_method: str | None
    method: str | None  # of the baseline

    @property
    def is_loss(self) -> bool:
        """Whether the baseline's median is below ours."""
        return self.ratio < 1


Comparisons = Sequence[Comparison]


def compare(rows: Rows) -> list[Comparison]:
    """Every baseline with a time beside ours by the same method, in the rows' order."""
    return [c for c in pair(rows) if c.method == c.our_method]


def pair(rows: Rows) -> list[Comparison]:
    """`compare`, and baselines beside which ours has a time by another method only."""
    ours: dict[tuple[str, str, Workload], dict[str | None, Times]] = {}
    for row in rows:
        if row.is_ours and row.times is not None:
            ours.setdefault(_case(row), {})[row.method] = row.times
    pairs = []
    for row in rows:
        mine = ours.get(_case(row), {})
        if not row.is_ours and row.times is not None and mine:
            method = row.method if row.method in mine else next(iter(mine))
            about = *_case(row), row.variant, method, row.method
            pairs.append(Comparison(row.times, mine[method], *about))
    return pairs


def losses(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Where a baseline is faster than ours, worst first."""
    return sorted((c for c in comparisons if c.is_loss), key=lambda c: c.ratio)


def without_ours(rows: Rows) -> list[tuple[str, str, Workload]]:
    """Op, direction and workload wherever a baseline has a time and ours none by its method."""
    timed = [row for row in rows if row.times is not None]
    ours = {(_case(row), row.method) for row in timed if row.is_ours}
    return list(dict.fromkeys(_case(row) for row in timed if (_case(row), row.method) not in ours))


def fewest_slots(rows: Rows) -> list[MicroRow]:
    """Of each op's rows at each N, those with the fewest slots measured there."""
    fewest: dict[tuple[object, ...], int] = {}
    for row in rows:
        slots = row.workload.num_slots or 0
        fewest[_width(row)] = min(fewest.get(_width(row), slots), slots)
    return [row for row in rows if (row.workload.num_slots or 0) == fewest[_width(row)]]


def _width(row: MicroRow) -> tuple[object, ...]:
    w = row.workload
    return row.op, w.num_tokens, w.in_dim, w.slot_dim


def _case(row: MicroRow) -> tuple[str, str, Workload]:
    return row.op, row.direction, row.workload


def ratio_text(comparison: Comparison) -> str:
    """The ratio with its spread."""
    low, mid, high = (three_digits(c) for c in (comparison.low, comparison.ratio, comparison.high))
    return f"{mid}× ({low} to {high})"


def loss_text(comparison: Comparison) -> str:
    """One loss in words."""
    c = comparison
    note = "; within the spread" if c.is_within_spread else ""
    return (
        f"{three_digits(1 / c.ratio)}× {c.baseline}'s time: {c.op} {c.direction}, "
        f"{workload_text(c.workload)}{clock_text(c.method)} ({duration(c.ours.median)} against "
        f"{duration(c.theirs.median)}{note})"
    )


def clock_text(method: str | None) -> str:
    """How a time on a GPU was taken, after a comma; nothing for others."""
    return CLOCKS.get(method or "", "")


def share_text(row: MicroRow) -> str:
    """The share of the measured ceilings, if it is known."""
    return "" if row.share_of_ceiling is None else f"{row.share_of_ceiling:.1%}"


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


def summary(rows: Rows, comparisons: Comparisons, used: settings.Rows = ()) -> str:
    """How often we lose, and how much was refused, in a sentence or two."""
    lost = len(all_losses(comparisons, used))
    count = len(comparisons) + sum(row.ours is not None for row in used)
    if not count:
        said = "No baseline has a time beside ours."
    elif lost == 0:
        said = f"Nowhere; no baseline is faster in any comparison ({count})."
    else:
        said = f"A baseline is faster in {lost} of {count} comparisons."
    refused = sum(row.times is None for row in rows) + sum(row.ours is None for row in used)
    total = len(rows) + len(used)
    return said + (
        f" {refused} of {total} rows were refused by the correctness gate." if refused else ""
    )


def all_losses(comparisons: Iterable[Comparison], used: settings.Rows) -> list[str]:
    """Where a baseline is faster than ours, at any size and in any setting, worst first."""
    lost = [(c.ratio, loss_text(c)) for c in losses(comparisons)] + settings.losses(used)
    return [sentence for _, sentence in sorted(lost, key=lambda pair: pair[0])]


def provenance(file: ResultFile) -> str:
    """Driver, versions, commit and date of a result file."""
    driver = "no driver" if file.driver is None else f"driver {file.driver}"
    versions = ", ".join(f"{name} {v or 'not installed'}" for name, v in file.versions.items())
    head, dash, dirty = file.commit.partition("-")
    return f"{driver}; {versions}; commit {head[:12]}{dash}{dirty}; {file.date}"


def readme_tables(results: dict[str, list[ResultFile]]) -> str:
    """The text between the README's markers: each device's figures, kind by kind."""
    blocks: list[str] = []
    for files in results.values():
        blocks.append(f"**{files[0].device}**")
        ordered = sorted(files, key=lambda file: KINDS.index(file.kind))
        if ops := [file for file in ordered if file.kind in OP_KINDS]:
            used = [row for file in files for row in file.settings]
            blocks += [*_readme_ops(ops, used), *map(_footer, ops)]
        for file in ordered[len(ops) :]:
            if file.kind == "settings":
                blocks += settings.readme(file.settings)
            elif file.kind == "e2e":
                blocks += end_to_end.readme(file.e2e)
            else:
                blocks += selectors.readme(file.selectors)
            blocks.append(_footer(file))
        kinds = {file.kind for file in files}
        blocks += [sentence for kind, sentence in UNMEASURED.items() if kind not in kinds]
    return "\n\n".join(blocks)


def _footer(file: ResultFile) -> str:
    return f"<sub>{file.kind}: {provenance(file)}</sub>"


def _readme_ops(files: Sequence[ResultFile], used: settings.Rows) -> list[str]:
    main = pipeline_file(files)
    blocks = [] if main is None else _readme_pipeline(main, files)
    comparisons = [c for file in files for c in compare(file.micro)]
    said = summary([row for file in files for row in file.micro], comparisons, used)
    blocks.append("Where we lose, over all ops, sizes and settings: " + said)
    if lost := all_losses(comparisons, used):
        title = f"The worst {README_LOSSES}" if len(lost) > README_LOSSES else "All of them"
        blocks.append(f"{title}:\n\n{bullets(lost[:README_LOSSES])}")
    return blocks


def _readme_pipeline(main: ResultFile, files: Sequence[ResultFile]) -> list[str]:
    """The table of `prune`; torch.compile may have a file of its own, ours beside it there."""
    rows = fewest_slots([row for row in main.measured() if row.is_pipeline])
    ours = graph_first(row for row in rows if row.is_ours)
    said = [
        "`prune`, forward, at the fewest slots measured for each N: time per call, median "
        "(20th to 80th percentile), and each baseline's time over ours."
    ]
    apart = [
        c
        for file in files
        if file.kind == "compile" and file is not main
        for c in pair(file.micro)
        if c.baseline == "compile"
    ]
    columns: dict[str, dict[Workload, str]] = {}
    for c in sorted([*pair(main.micro), *apart], key=_column_order):
        if (c.op, c.direction) == PIPELINE and any(c.workload == row.workload for row in ours):
            columns.setdefault(_column(c), {})[c.workload] = ratio_text(c)
    on_gpu = any(row.method in CLOCKS for row in ours)
    if on_gpu:
        said.append(f"Ours and unmarked ratios are by graph. {CLOCK_LEGEND} {SHARE_LEGEND}")
    if apart:
        said.append(APART)
    lines = []
    for row in ours:
        assert row.times is not None
        mark = clock_text(row.method) if row.method == "events" else ""
        ratios = [column.get(row.workload, "none") for column in columns.values()]
        share = [share_text(row)] if on_gpu else []
        lines.append([workload_text(row.workload), times_text(row.times) + mark, *ratios, *share])
    header = ["workload", "ours", *columns, *(["of the ceilings"] if on_gpu else [])]
    return [" ".join(said), markdown_table(header, lines)]


def _column(c: Comparison) -> str:
    if c.method != c.our_method:
        return f"{c.baseline}{clock_text(c.method)} / ours{clock_text(c.our_method)}"
    return f"{c.baseline} / ours" + (clock_text(c.method) if c.method == "events" else "")


def _column_order(c: Comparison) -> tuple[int, bool]:
    known = c.baseline in KNOWN_VARIANTS
    index = KNOWN_VARIANTS.index(c.baseline) if known else len(KNOWN_VARIANTS)
    return index, c.method == "events"


def rewrite_between_markers(text: str, inside: str) -> str:
    """``text`` with what stands between the two markers replaced.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(f"expected {START} and then {END}, once each")
    before, after = text.split(START)[0], text.split(END)[1]
    return f"{before}{START}\n{inside}\n{END}{after}"
