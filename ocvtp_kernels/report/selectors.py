"""The table of selectors: every method on the same tokens, and where published loops are faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from ocvtp_kernels.markdown import markdown_table
from ocvtp_kernels.report.fields import GATED, IN_SECONDS, Gate, Members, Text, Times, Versus
from ocvtp_kernels.report.text import bullets, duration, three_digits, times_text

LEGEND = (
    "Every method on the same images at the same budget: time per image in a batch of B, median "
    "(20th to 80th percentile), from tokens, keys and attention, which are given, to ids and kept "
    "rows. Coverage: the mean over all tokens of the cosine with the nearest kept token. "
    "Published / ours: its published code's time over ours, in turns on one image; loop: of the "
    "greedy loop alone, the matrix that it reads given to both. Images are random, smooth like an "
    "encoder's output, and the OC-pruner's weights are random too: coverage "
    "says how far a choice spreads, not how well a model answers with it."
)
REFUSED, UNKNOWN = "refused", "unknown"
OF_GRAPH = Members(Times, ("graph_median_s", "graph_p20_s", "graph_p80_s"), is_optional=True)


@dataclass(frozen=True)
class Published(Versus):
    """Published code and ours, timed in turns on one image."""

    ours: Annotated[Times, Members(Times, ("ours_median_s", "ours_p20_s", "ours_p80_s"))]
    theirs: Annotated[Times, IN_SECONDS]


@dataclass(frozen=True)
class Size:
    """What the methods of one table share; T tokens kept of N, C channels wide."""

    num_tokens: int
    width: int
    budget: int
    dtype: Text

    def __str__(self) -> str:
        return f"N {self.num_tokens} · T {self.budget} · C {self.width} · {self.dtype}"


@dataclass(frozen=True)
class SelectorRow:
    """One method on a batch; seconds are per image."""

    method: Text
    batch: int
    size: Annotated[Size, Members(Size, ("num_tokens",))]
    times: Annotated[Times | None, GATED, IN_SECONDS]  # None: refused by the correctness gate
    graph: Annotated[Times | None, GATED, OF_GRAPH]  # of a CUDA graph's replay
    coverage: float | None  # mean over images; None: unknown
    duplicates: int | None  # tokens kept more than once, over all images
    exact: bool | None  # whether every image keeps exactly T distinct tokens
    published: Annotated[Published | None, GATED]  # the whole method
    loop: Annotated[Published | None, GATED]  # its greedy loop alone
    gate: Gate

    @property
    def key(self) -> tuple[object, ...]:
        """Unique among the rows of a file."""
        return self.method, self.batch, self.size


Rows = Sequence[SelectorRow]


def sizes_of(rows: Rows) -> list[Size]:
    """The sizes measured, one a table, in the rows' order."""
    return list(dict.fromkeys(row.size for row in rows))


def table(rows: Rows, size: Size) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a size: a line a method, a column or two a batch."""
    mine = [row for row in rows if row.size == size]
    batches = sorted({row.batch for row in mine})
    by_key = {(row.method, row.batch): row for row in mine}
    columns = [
        (batch, is_graph)
        for batch in batches
        for is_graph in (False, True)
        if not is_graph or any(row.graph is not None for row in mine if row.batch == batch)
    ]
    heads = [f"B {batch}, graph" if is_graph else f"B {batch}" for batch, is_graph in columns]
    header = ["method", *heads, "coverage", "duplicates", "exactly T", "published / ours", "loop"]
    lines = []
    for method in dict.fromkeys(row.method for row in mine):
        its = [by_key[method, batch] for batch in batches if (method, batch) in by_key]
        times = [_time(by_key.get((method, batch)), is_graph) for batch, is_graph in columns]
        ratios = _ratio([row.published for row in its]), _ratio([row.loop for row in its])
        lines.append([method, *times, *_kept(its), *ratios])
    return header, lines


def _time(row: SelectorRow | None, is_graph: bool) -> str:
    if row is None:
        return ""
    if row.times is None:
        return REFUSED
    times = row.graph if is_graph else row.times
    return "" if times is None else times_text(times)


def _kept(its: Rows) -> tuple[str, str, str]:
    """Coverage of the largest batch, which has the most images; duplicates and T over all."""
    coverage = its[-1].coverage
    duplicates = [row.duplicates for row in its]
    exact = [row.exact for row in its]
    return (
        UNKNOWN if coverage is None else f"{coverage:.3f}",
        UNKNOWN if None in duplicates else str(sum(count or 0 for count in duplicates)),
        UNKNOWN if None in exact else "yes" if all(exact) else "no",
    )


def _ratio(published: Sequence[Published | None]) -> str:
    ratios = [one.ratio for one in published if one is not None]
    return f"{three_digits(ratios[0])}×" if ratios else ""


def losses(rows: Rows) -> list[str]:
    """Where published loops are faster than ours, worst first, in words."""
    lost = [(row, p) for row in rows if (p := row.published) is not None and p.ratio < 1]
    return [
        f"{row.method}, {row.size}: {three_digits(1 / p.ratio)}× the published loops' time "
        f"({duration(p.ours.median)} against {duration(p.theirs.median)})"
        for row, p in sorted(lost, key=lambda pair: pair[1].ratio)
    ]


def refusals(rows: Rows) -> list[str]:
    """What the correctness gate refused, and why."""
    return [
        f"{row.method}, B {row.batch} · {row.size}: {row.gate.note or 'no reason was recorded'}"
        for row in rows
        if row.times is None
    ]


def summary(rows: Rows) -> str:
    """How often the published loops are faster, and how much was refused."""
    compared = sum(row.published is not None for row in rows)
    said = (
        f"Published loops are faster in {len(losses(rows))} of {compared} comparisons."
        if compared
        else "No published loops were timed."
    )
    refused = len(refusals(rows))
    return said + (f" {refused} of {len(rows)} rows were refused." if refused else "")


def readme(rows: Rows) -> list[str]:
    """What the README says: the table of the smallest budget, where we lose, what was refused."""
    if not rows:
        return ["Selectors: the file holds no row."]
    sizes = sizes_of(rows)
    size = min(sizes, key=lambda one: (-one.num_tokens, one.budget))
    blocks = ["Selectors. " + LEGEND, f"{size}:", markdown_table(*table(rows, size))]
    if others := [str(one) for one in sizes if one != size]:
        blocks.append("In the report: " + "; ".join(others) + ".")
    blocks.append(summary(rows))
    if said := [*losses(rows), *refusals(rows)]:
        blocks.append(bullets(said))
    return blocks
