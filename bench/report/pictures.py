"""The pictures of a device: a PNG a question, its cases beside each other in one picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from math import ceil, exp, floor, log, log10
from textwrap import fill
from typing import Any, Literal

import matplotlib
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from bench.report import tables, text
from bench.report.tables import Comparison
from bench.results import (
    OURS,
    STAGES,
    ModelRow,
    OpRow,
    Results,
    SelectorRow,
    Times,
    Versus,
    graph_first,
)
from bench.workloads import Workload

INK, SOFT, GRID, OTHER = "#222222", "#666666", "#e4e4e4", "#4d4d4d"
LOSS, ROOF = "#f9ecee", "#f4f4f4"  # what is shaded
# Ours, eager's and compile's are Okabe and Ito's, which the colour-blind tell apart.
COLOURS = {
    OURS: "#d55e00",
    "eager": "#0072b2",
    "compile": "#009e73",
    "published": "#8a8a8a",
    "csrc": "#9467bd",
    "flashslice": "#56b4e9",
    "colreduce": "#8c6d1f",
}
STAGE_COLOURS = ("#a9c1d9", COLOURS[OURS], "#6d94ba", "#33658f")  # the pruner is ours
LINES = (INK, SOFT, OTHER, *COLOURS.values(), *STAGE_COLOURS)
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": SOFT,
    "axes.edgecolor": "#b8b8b8",
    "axes.labelcolor": SOFT,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys((f"{a}tick.{kind}.size" for a in "xy" for kind in ("major", "minor")), 0),
    **dict.fromkeys((f"axes.spines.{side}" for side in ("top", "right", "left")), False),
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
}
WIDTH, DPI = 10.0, 180  # inches; twice the pixels that a page shows
LINE = 0.155  # inches, the height of a label
TICKS = 5
Axes = Any
Point = tuple[float, float]


@matplotlib.rc_context(STYLE)
def pictures(files: Sequence[Results]) -> dict[str, Figure]:
    """What can be drawn of a device's files, by the PNG's name without its ending."""
    main = tables.prune_file(files)
    prune = [] if main is None else [row for row in main.op_rows() if tables.is_prune(row)]
    used = tables.comparisons_of(file for file in files if file.suite == "usage")
    others = tables.comparisons_of(file for file in files if file.suite != "usage")
    single = [c for c in others if not tables.is_prune(c.row)]
    whole = [c for c in others if tables.is_prune(c.row)]
    of_prune = _by(whole, lambda row: row.workload.dtype, lambda row: _sizes(row.workload))
    of_ops = _by(single, lambda row: "single ops", lambda row: f"{row.op} {row.direction}")
    of_ops |= _by(used, _threads, _way)
    drawn = {
        "overview": overview(files),
        "latency_batch": latency(prune, "batch"),
        "latency_tokens": latency(prune, "num_tokens"),
        "roofline": roofline(files),
        "ratios_prune": ratios(of_prune, "prune"),
        "ratios_ops": ratios(of_ops, "Single ops and ways of use"),
        "stages": stages(tables.rows_of(files, ModelRow)),
        "selectors": selectors(tables.rows_of(files, SelectorRow)),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


@matplotlib.rc_context(STYLE)
def png(figure: Figure) -> bytes:
    """The same bytes for the same picture, in few colours."""
    drawn, file = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, metadata={"Software": None})
    # Every colour of the pictures, in steps to white where text and lines have it.
    steps = [(base, step / 9) for base in dict.fromkeys(LINES) for step in range(10)]
    flat = [
        round(255 - 255 * (1 - channel) * share)
        for base, share in [*steps, (GRID, 1), (LOSS, 1), (ROOF, 1)]
        for channel in to_rgb(base)
    ]
    palette = Image.new("P", (1, 1))
    palette.putpalette(flat)
    image = Image.open(drawn).convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE)
    image.save(file, format="png", optimize=True)
    return file.getvalue()


def overview(files: Sequence[Results]) -> Figure | None:
    """Our `prune` beside its baselines at the smallest batches, and every comparison as a dot."""
    dots = {name: [one.versus for one in found] for name, found in tables.outcomes(files).items()}
    shown: dict[tuple[str, int], OpRow] = {}
    ours = tables.our_prune(tables.prune_file(files))
    for row in sorted(ours, key=lambda row: row.workload.batch):
        shown.setdefault((row.workload.dtype, row.workload.num_tokens), row)
    rows = list(shown.values())[:6]
    if not rows and not dots:
        return None
    height = 0.5 + max(1.35 * ceil(len(rows) / 2), 0.55 * len(dots) + 0.5)
    title = f"Time per call of prune; {_won([*chain(*dots.values())])}"
    figure = _figure(WIDTH, height, title)
    parts: Any = figure.subfigures(1, 2, width_ratios=(1.3, 1))
    if rows:
        grid = list(parts[0].subplots(ceil(len(rows) / 2), 2, squeeze=False).flat)
        bars = [_bars(row, tables.pairs_of(files)) for row in rows]
        for axes, row, its in zip(grid, rows, bars, strict=False):
            _paint_bars(axes, its)
            axes.set(title=text.workload_text(row.workload), ylim=(max(map(len, bars)) - 0.4, -0.6))
        for axes in grid[len(rows) :]:
            axes.remove()
    if dots:
        _paint_dots(parts[1].subplots(), dots)
    return figure


def _bars(row: OpRow, compared: Sequence[Comparison]) -> dict[str, tuple[Times, str]]:
    """Ours, then each baseline by the same method or, where there is none, by another."""
    assert row.times is not None
    ours = row.times
    bars = {OURS: (ours, text.duration(ours.median) + text.clock_text(ours.method))}
    mine = [c for c in compared if c.row.case == row.case]
    for c in sorted(mine, key=lambda c: c.theirs.method != ours.method):
        clock = text.clock_text(c.theirs.method) if c.theirs.method != ours.method else ""
        said = f"{text.duration(c.theirs.median)}{clock} · {text.three_digits(c.ratio)}×"
        bars.setdefault(c.row.variant, (c.theirs, said))
    return bars


def _paint_bars(axes: Axes, bars: Mapping[str, tuple[Times, str]]) -> None:
    limit = 5 * bars[OURS][0].median  # beyond, a bar is broken off
    for y, (name, (times, said)) in enumerate(bars.items()):
        end = min(times.p80, limit)
        axes.barh(y, min(times.median, limit), height=0.66, color=_colour(name), lw=0)
        if times.median <= limit:
            axes.plot([times.p20, end], [y, y], color=INK, lw=0.9)
        else:
            axes.text(0.9 * limit, y, "//", color="white", va="center", ha="center", weight="bold")
        axes.annotate(
            said, (end, y), (4, 0), textcoords="offset points", va="center", fontsize=7.5,
            weight="bold" if name == OURS else "normal",
        )  # fmt: skip
    longest = min(limit, max(times.p80 for times, _ in bars.values()))
    # What the texts leave.
    room = max(0.15, 0.97 - 0.029 * max(len(said) for _, said in bars.values()))
    axes.set_xlim(0, longest / room)
    _bare(axes, bars)


def _paint_dots(axes: Axes, dots: Mapping[str, Sequence[Versus]]) -> None:
    _ratio_axis(axes, [one.ratio for found in dots.values() for one in found])
    names = []
    for y, (name, found) in enumerate(dots.items()):
        won = sum(one.ratio >= 1 for one in found)
        names.append(f"{name}\nahead in {won} of {len(found)}")
        for i, one in enumerate(found):
            # The golden ratio scatters neighbours evenly.
            at = y + 0.5 * ((i * 0.618) % 1 - 0.5) * (len(found) > 1)
            colour = COLOURS[OURS] if one.ratio >= 1 else INK
            axes.plot(one.ratio, at, "o", color=colour, ms=5, mec="white", mew=0.5)
    axes.set_yticks(range(len(dots)), names)
    axes.set(ylim=(len(dots) - 0.5, -0.5), title="a baseline over ours; shaded: we lose")


def latency(rows: Sequence[OpRow], against: Literal["batch", "num_tokens"]) -> Figure | None:
    """Time of `prune` with its spread; a panel for what else is the same, where two sizes are.

    Of several numbers of slots at one N, the smallest is drawn.
    """
    other = "num_tokens" if against == "batch" else "batch"
    groups: dict[Workload, list[OpRow]] = {}
    for row in (row for row in rows if row.times):
        w = replace(row.workload, num_slots=0, budget=0)
        fixed = replace(w, batch=0) if against == "batch" else replace(w, num_tokens=0)
        groups.setdefault(fixed, []).append(row)
    panels = [tables.fewest_slots(group) for group in groups.values()]
    panels = [its for its in panels if len({getattr(r.workload, against) for r in its}) > 1]
    panels.sort(key=lambda its: getattr(its[0].workload, other))
    if not panels:
        return None
    won = _won([c for its in panels for c in tables.pair(its) if c.is_alike])
    what = "batch" if against == "batch" else "N"
    figure, grid = _panels([2.4] * len(panels), 3, f"prune against {what}: {won}")
    for axes, its in zip(grid, panels, strict=True):
        _paint_latency(axes, its, against)
    if any(row.times and row.times.method == "events" for its in panels for row in its):
        figure.supxlabel("solid: by graph; dashed: launched", x=0.01, ha="left", fontsize=8)
    return figure


def _paint_latency(axes: Axes, rows: Sequence[OpRow], against: str) -> None:
    lines: dict[tuple[bool, str], list[tuple[int, float, float, float]]] = {}
    slots: dict[int, int] = {}
    for row in rows:
        x, t = getattr(row.workload, against), row.times
        assert t is not None
        slots[x] = row.workload.num_slots
        line = lines.setdefault((t.method == "events", row.variant), [])
        line.append((x, t.median, t.p20, t.p80))
    ends: dict[str, tuple[str, Point]] = {}
    for (launched, name), points in sorted(lines.items()):
        x, median, low, high = zip(*sorted(points), strict=True)
        style = {"lw": 2.2, "ms": 4.5} if name == OURS else {"lw": 1.3, "ms": 3.5}
        axes.fill_between(x, low, high, color=_colour(name), alpha=0.18, lw=0)
        axes.plot(
            x, median, "o--" if launched else "o-", color=_colour(name), clip_on=False, **style
        )
        ends.setdefault(name, (name, (x[-1], median[-1])))
    axes.set(xscale="log", xlabel="images a call" if against == "batch" else "tokens an image")
    ticks = [f"{x}" if against == "batch" else f"{x}\nK {slots[x]}" for x in sorted(slots)]
    axes.set_xticks(sorted(slots), ticks)
    limits = _padded([t for points in lines.values() for point in points for t in point[1:]])
    _log_axis(axes, "y", limits, _round_duration)
    axes.minorticks_off()
    axes.grid(False, axis="x")
    first = rows[0].workload
    size = (
        f"N {first.num_tokens} · K {first.num_slots}" if against == "batch" else f"B {first.batch}"
    )
    axes.set_title(" · ".join([size, first.dtype, *text.usage_texts(first)]))
    _label(axes, [(name, *end) for name, end in ends.items()], 1.5)


def roofline(files: Sequence[Results]) -> Figure | None:
    """For each file and dtype the measured ceilings, and a dot per op, variant and workload.

    Of several numbers of slots at one N, the smallest is drawn; of two methods, the graph.
    """
    panels: list[tuple[Results, str, list[OpRow]]] = []
    for file in files:
        rows = [r for r in graph_first(file.op_rows()) if r.times and r.work.flops and r.work.bytes]
        for dtype in dict.fromkeys(row.workload.dtype for row in rows):
            if file.suite in ("prune", "ops") and dtype in file.ceilings.matmul_tflops:
                dots = tables.fewest_slots([row for row in rows if row.workload.dtype == dtype])
                panels.append((file, dtype, dots))
    if not panels:
        return None
    ours = [row for _, _, dots in panels for row in dots if row.is_ours]
    best = max(ours, key=lambda row: _at_roof(row)[1], default=None)
    said = "Roofline"
    if best is not None:
        rate = text.tflops_text(_at_roof(best)[1])
        said += f": ours reaches {rate} at most ({best.op} {best.direction}, {best.workload.dtype})"
    labels = [_roof_labels(dots) for _, _, dots in panels]
    heights = [max(3.2, LINE * len(its) + 1.2) for its in labels]
    figure, grid = _panels(heights, 2, said)
    for axes, (file, dtype, dots), its, height in zip(grid, panels, labels, heights, strict=True):
        peak, copy = file.ceilings.matmul_tflops[dtype], file.ceilings.copy_gb_s
        _paint_roofline(axes, dots, peak, copy)
        rates = f"products {text.tflops_text(peak)}, copies {text.bandwidth_text(copy)}"
        axes.set_title(f"{file.suite} · {dtype} · {rates}")
        _label(axes, [(OURS, name, point) for name, point in its.items()], height - 1)
    _legend(figure, [row.variant for _, _, dots in panels for row in dots])
    return figure


def _at_roof(row: OpRow) -> Point:
    assert row.times is not None
    return row.work.flops / row.work.bytes, row.work.flops / row.times.median / 1e12


def _roof_labels(dots: Sequence[OpRow]) -> dict[str, Point]:
    """What names our dots: the workload where there is one op, else the op, at its best."""
    single = len({(row.op, row.direction) for row in dots}) == 1
    found: dict[str, Point] = {}
    for row in sorted((r for r in dots if r.is_ours), key=lambda r: -_at_roof(r)[1]):
        name = _sizes(row.workload) if single else row.op
        found.setdefault(name, _at_roof(row))
    return found


def _paint_roofline(axes: Axes, dots: Sequence[OpRow], peak: float, copy: float) -> None:
    points, ridge = [_at_roof(row) for row in dots], peak * 1e3 / copy
    left, right = _padded([*(x for x, _ in points), ridge / 12, ridge * 6])
    roof = [left * copy / 1e3, peak, peak]
    bottom = min(roof[0], *(y for _, y in points)) / 1.6
    axes.fill_between([left, ridge, right], roof, bottom, color=ROOF, lw=0)
    axes.plot([left, ridge, right], roof, color=INK, lw=1.4, zorder=1)
    for row, (x, y) in sorted(zip(dots, points, strict=True), key=lambda dot: dot[0].is_ours):
        axes.plot(
            x, y, "o", color=_colour(row.variant), mec="white", mew=0.6, clip_on=False,
            ms=6.5 if row.is_ours else 4.5,
        )  # fmt: skip
    _log_axis(axes, "x", (left, right), lambda t: f"{t:g}")
    _log_axis(axes, "y", (bottom, max(peak, *(y for _, y in points)) * 1.6), lambda t: f"{t:g}")
    axes.set(xlabel="FLOP per byte", ylabel="TFLOP/s")


def ratios(panels: Mapping[str, Mapping[str, Sequence[Comparison]]], what: str) -> Figure | None:
    """Each baseline's time over ours with its spread, from the worst to the best."""
    every = [c for lines in panels.values() for found in lines.values() for c in found]
    if not every:
        return None
    middle = sorted(c.ratio for c in every)[len(every) // 2]
    said = f"{what}: {_won(every)}, in the middle by {text.three_digits(middle)}×"
    heights = [
        0.9 + sum(max(0.19, 0.05 * len(found)) for found in lines.values())
        for lines in panels.values()
    ]
    figure, grid = _panels(heights, 2 if len(panels) < 5 else 3, said)
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        edges = [edge for found in lines.values() for c in found for edge in (c.low, c.high)]
        _ratio_axis(axes, edges)
        for line, found in enumerate(lines.values()):
            for i, c in enumerate(found):
                y = line + 0.75 * ((i + 0.5) / len(found) - 0.5)
                axes.plot([c.low, c.high], [y, y], color=_colour(c.row.variant), lw=1.7, alpha=0.4)
                axes.plot(c.ratio, y, "o", color=_colour(c.row.variant), ms=4)
        axes.set_yticks(range(len(lines)), lines)
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.set_title(title, loc="right")
    _legend(figure, [c.row.variant for c in every])
    return figure


def stages(rows: Sequence[ModelRow]) -> Figure | None:
    """Per model at its smallest batch, a bar a row with its stages, and a dot for the whole."""
    panels = {
        model: bars
        for model, mine in tables.models_of(rows).items()
        if (bars := [row for row in tables.shortlist(mine) if row.times is not None])
    }
    if not panels:
        return None
    pruned = [row for bars in panels.values() for row in bars if row.is_pruned]
    best = max(pruned, key=lambda row: tables.speed_up(row, rows) or 0, default=None)
    said = "Time to the first token"
    if best is not None and (ratio := tables.speed_up(best, rows)) is not None:
        where = f"{best.model}, {best.mode}, {tables.budget_text(best)}"
        said += f": {text.three_digits(ratio)}× at best ({where})"
    figure, grid = _panels([0.7 + 0.3 * len(bars) for bars in panels.values()], 2, said)
    for axes, (model, bars) in zip(grid, panels.items(), strict=True):
        longest = 0.0
        for y, row in enumerate(bars):
            assert row.times is not None
            start, whole = 0.0, row.times.ttft
            for stage, colour in zip(STAGES, STAGE_COLOURS, strict=True):
                seconds = row.times.stages.get(stage, 0.0)
                axes.barh(y, seconds, left=start, height=0.66, color=colour, lw=0)
                start += seconds
            axes.plot([whole.p20, whole.p80], [y, y], color=INK, lw=0.9)
            axes.plot(whole.median, y, "o", color=INK, ms=4)
            end, longest = max(start, whole.p80), max(longest, start, whole.p80)
            ratio = tables.speed_up(row, rows) if row.is_pruned else None
            more = "" if ratio is None else f" · {text.three_digits(ratio)}×"
            axes.annotate(
                text.duration(whole.median) + more, (end, y), (6, 0), textcoords="offset points",
                va="center",
            )  # fmt: skip
        axes.set(xlim=(0, 1.35 * longest), title=f"{model}, batch {bars[0].batch}")
        _bare(axes, [f"{row.mode}, {tables.budget_text(row)}" for row in bars])
    marks = [
        Line2D([], [], color=colour, lw=6, label=stage)
        for stage, colour in zip(STAGES, STAGE_COLOURS, strict=True)
    ]
    marks.append(Line2D([], [], color=INK, marker="o", ms=4, lw=0.9, label="the whole, measured"))
    figure.legend(handles=marks, loc="outside lower left", ncols=len(marks), frameon=False)
    return figure


def selectors(rows: Sequence[SelectorRow]) -> Figure | None:
    """Time of an image against coverage at the smallest batch; by graph where there is one."""
    panels: dict[str, list[tuple[SelectorRow, Times, float]]] = {}
    for size in tables.sizes_of(rows):
        batch = min(row.batch for row in rows if row.size == size)
        for row in rows:
            if (row.size, row.batch) == (size, batch) and row.times and row.quality:
                title = f"{tables.size_text(size)} · B {batch}"
                dot = row, row.graph or row.times, row.quality.coverage
                panels.setdefault(title, []).append(dot)
    if not panels:
        return None
    first = next(iter(panels.values()))
    best = max(first, key=lambda dot: dot[2])
    mine = [dot for dot in first if dot[0].method == "oc-pruner" != best[0].method]
    told = [
        f"{row.method} covers {c:.3f} in {text.duration(t.median)}" for row, t, c in [best, *mine]
    ]
    height = max(3.2, LINE * max(map(len, panels.values())) + 1)
    figure, grid = _panels([height] * len(panels), 2, "Selectors: " + ", ".join(told))
    for axes, (title, dots) in zip(grid, panels.items(), strict=True):
        labels = []
        for row, t, coverage in dots:
            name = OURS if row.method == "oc-pruner" else ""
            axes.plot([t.p20, t.p80], [coverage] * 2, color=_colour(name), lw=1.7, alpha=0.4)
            axes.plot(t.median, coverage, "o", color=_colour(name), ms=5.5, mec="white", mew=0.6)
            labels.append((name, row.method, (t.median, coverage)))
        axes.set(title=title, xlabel="time an image", ylabel="coverage")
        limits = _padded([edge for _, t, _ in dots for edge in (t.p20, t.p80)])
        _log_axis(axes, "x", limits, _round_duration)
        axes.margins(y=0.08)
        _label(axes, labels, height - 0.9)
    return figure


def _by(
    found: Iterable[Comparison], panel: Callable[[OpRow], str], line: Callable[[OpRow], str]
) -> dict[str, dict[str, list[Comparison]]]:
    """Comparisons by the panel and, in it, the line that they are drawn at; graphs come first."""
    panels: dict[str, dict[str, list[Comparison]]] = {}
    for c in sorted(found, key=lambda c: c.theirs.method != "graph"):
        its = panels.setdefault(panel(c.row) + text.clock_text(c.theirs.method), {})
        its.setdefault(line(c.row), []).append(c)
    return panels


def _sizes(workload: Workload) -> str:
    return text.workload_text(workload, dtype=False)


def _threads(row: OpRow) -> str:
    return ", ".join(["usage", *text.usage_texts(replace(row.workload, mode="no_grad"))])


def _way(row: OpRow) -> str:
    """An op in one way of use."""
    op, w = row.op if row.direction == "forward" else f"{row.op} {row.direction}", row.workload
    return " · ".join([op, *text.usage_texts(replace(w, threads=None)), w.dtype])


def _round_duration(seconds: float) -> str:
    return text.duration(seconds).replace(".00", "").replace(".0 ", " ")


def _won(found: Sequence[Versus]) -> str:
    if not found:
        return "no baseline beside it"
    return f"ours is ahead in {sum(one.ratio >= 1 for one in found)} of {len(found)} comparisons"


def _colour(variant: str) -> str:
    return COLOURS.get(variant, OTHER)


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(fill(title[0].upper() + title[1:], int(10 * width)), x=0.008, ha="left")
    return figure


def _panels(heights: Sequence[float], columns: int, title: str) -> tuple[Figure, Iterator[Axes]]:
    """A figure with as many axes as there are heights, in inches, row by row."""
    columns = min(columns, len(heights))
    tall = [max(heights[i : i + columns]) for i in range(0, len(heights), columns)]
    figure = _figure(WIDTH if columns > 1 else 0.62 * WIDTH, sum(tall) + 0.5, title)
    grid = figure.subplots(
        len(tall), columns, squeeze=False, gridspec_kw={"height_ratios": tall}
    ).flat
    axes = list(grid)
    for unused in axes[len(heights) :]:
        unused.remove()
    return figure, iter(axes[: len(heights)])


def _legend(figure: Figure, variants: Iterable[str]) -> None:
    names = sorted(set(variants), key=lambda name: ([*COLOURS, name].index(name), name))
    marks = [Line2D([], [], color=_colour(name), marker="o", lw=0, label=name) for name in names]
    figure.legend(
        handles=marks, loc="outside lower left", ncols=len(marks), frameon=False,
        labelcolor="linecolor", handletextpad=0.1,
    )  # fmt: skip


def _label(axes: Axes, labels: Sequence[tuple[str, str, Point]], height: float) -> None:
    """Names in a column at the right with a line to their points, as high as these or apart.

    Args:
        labels: the variant whose colour it takes, the name, and the point.
        height: inches of the axes, about.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    at = apart({name: to_axes.transform(point)[1] for _, name, point in labels}, LINE / height)
    for variant, name, point in labels:
        axes.annotate(
            name, point, (1.05, at[name]), textcoords="axes fraction", va="center",
            color=_colour(variant), weight="bold" if name in (OURS, "oc-pruner") else "normal",
            arrowprops={"arrowstyle": "-", "color": _colour(variant), "lw": 0.5, "alpha": 0.5,
                        "relpos": (0, 0.5),
                        "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip


def apart(heights: Mapping[str, float], gap: float) -> dict[str, float]:
    """Heights (0 to 1) moved up, then down from the top, until none is nearer than ``gap``."""
    names = sorted(heights, key=lambda name: heights[name])
    at, below = [], -1.0
    for name in names:
        below = max(heights[name], below + gap)
        at.append(below)
    above = 1.0
    for i in reversed(range(len(at))):
        above = at[i] = min(at[i], above - gap)
    return dict(zip(names, at, strict=True))


def _bare(axes: Axes, names: Iterable[str]) -> None:
    """Bars with their names, from the top, and without a scale."""
    names = list(names)
    axes.set_yticks(range(len(names)), names)
    axes.set(xticks=[], ylim=(len(names) - 0.4, -0.6))
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)


def _ratio_axis(axes: Axes, values: Sequence[float]) -> None:
    low, high = _padded([*values, 1.0])
    axes.axvspan(low, 1, color=LOSS, lw=0)
    axes.axvline(1, color=INK, lw=1)
    _log_axis(axes, "x", (low, high), lambda t: f"{t:g}×", [1.0])
    axes.grid(False, axis="y")


def _log_axis(
    axes: Axes, name: str, limits: Point, shown: Callable[[float], str], more: Sequence[float] = ()
) -> None:
    """A logarithmic axis, ``name`` x or y, with a few round ticks."""
    axes.set(**{f"{name}scale": "log", f"{name}lim": limits})
    ticks = sorted({*nice_ticks(*limits), *more})
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_ticks(ticks, labels=[shown(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def nice_ticks(low: float, high: float) -> list[float]:
    """At most `TICKS` round numbers over a logarithmic range."""
    decades = range(floor(log10(low)) - 1, ceil(log10(high)) + 2)
    for steps in ((1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(ticks) <= TICKS:
            break
    return ticks[:: ceil(len(ticks) / TICKS)] if ticks else [low, high]


def _padded(values: Sequence[float], min_factor: float = 2.5) -> Point:
    """The values' range with a margin, at least a factor ``min_factor`` wide."""
    low, high = min(values), max(values)
    margin = max(log(min_factor) - log(high / low), 0) / 2 + 0.08 * log(max(high / low, min_factor))
    return low / exp(margin), high * exp(margin)
