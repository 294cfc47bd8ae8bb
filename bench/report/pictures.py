"""The pictures of a device: a PNG a question, its cases beside each other in one picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product, zip_longest
from math import ceil, inf
from statistics import median
from textwrap import fill
from typing import Any, Literal, TypeVar

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from bench.report import tables, text
from bench.report.retention import Answers, answers
from bench.report.tables import Comparison, Outcome, grouped
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
from bench.retention.results import OC_PRUNER, RANDOM, Retention

INK, SOFT, GRID, OTHER = "#222222", "#666666", "#e4e4e4", "#4d4d4d"
LOSS, ROOF = "#f9ecee", "#f4f4f4"  # what is shaded
# Of `tables.VARIANTS`; the first three are Okabe and Ito's, which the colour-blind tell apart.
PALETTE = ("#d55e00", "#0072b2", "#009e73", "#8a8a8a", "#56b4e9", "#9467bd", "#8c6d1f")
COLOURS = dict(zip((*tables.VARIANTS, "oc-pruner"), (*PALETTE, PALETTE[0]), strict=True))
STAGE_COLOURS = ("#a9c1d9", COLOURS[OURS], "#6d94ba", "#33658f")  # the pruner is ours
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
WIDTH, DPI = 10.0, 120  # inches; at 120 marks fall on whole pixels, and files are small
DASHES = ("-", "--", "-.", ":")
LINE, BAR = 0.155, 0.66  # inches, the height of a label; and of a bar, where 1 is the next
# Ticks of a decade, on axes whose end is less than so many times their start.
TICKS = {3: (1, 1.5, 2, 3, 5, 7), 15: (1, 2, 3, 5), 60: (1, 2, 5), 1000: (1, 3), inf: (1,)}
Axes = Any
Point = tuple[float, float]
Panel = TypeVar("Panel")


@matplotlib.rc_context(STYLE)
def pictures(files: Sequence[Results]) -> dict[str, Figure]:
    """What can be drawn of a device's files, by the PNG's name without its ending."""
    prune = tables.prune_rows(tables.prune_file(files))
    drawn = {
        "overview": overview(files),
        "latency_batch": latency(prune, "batch"),
        "latency_tokens": latency(prune, "num_tokens"),
        "roofline": roofline(files),
        "ratios_prune": ratios(files, "prune"),
        "ratios_ops": ratios(files, "Single ops and ways of use"),
        "stages": stages(tables.rows_of(files, ModelRow)),
        "selectors": selectors(tables.rows_of(files, SelectorRow)),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


@matplotlib.rc_context(STYLE)
def png(figure: Figure) -> bytes:
    """The same bytes for the same picture."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def overview(files: Sequence[Results]) -> Figure | None:
    """Our `prune` beside its baselines at the smallest batches, and every comparison as a dot."""
    found = tables.outcomes(files)
    dots = grouped(found, lambda one: one.kind)
    ours = tables.our_prune(tables.prune_file(files))
    ours.sort(key=lambda row: row.workload.batch)
    sizes = grouped(ours, lambda row: (row.workload.dtype, row.workload.num_tokens))
    bars = {
        text.workload_text(row.workload): _bars(row, tables.pairs_of(files))
        for row, *_ in [*sizes.values()][:6]
    }
    if not bars and not dots:
        return None
    right, titles = ["dots"] * bool(dots), [*bars]
    pairs = zip_longest(titles[::2], titles[1::2], fillvalue="")
    cells = [[*two, *right] for two in pairs] or [right]
    height = 0.5 + max(1.35 * ceil(len(bars) / 2), 0.55 * len(dots) + 0.5)
    figure = _figure(WIDTH, height, f"Time per call of prune; {_won(found)}")
    widths = [2.2 if cell == "dots" else 1.0 for cell in cells[0]]
    axes: Any = figure.subplot_mosaic(cells, empty_sentinel="", width_ratios=widths)
    for title, its in bars.items():
        _paint_bars(axes[title], its)
        axes[title].set(title=title, ylim=(max(map(len, bars.values())) - 0.4, -0.6))
    if dots:
        _paint_dots(axes["dots"], dots)
    return figure


def _bars(ours: OpRow, compared: Sequence[Comparison]) -> dict[str, tuple[Times, str]]:
    """Ours, then each baseline by the same method or, where there is none, by another."""
    took, method = text.duration(ours.taken.median), ours.taken.method
    bars = {OURS: (ours.taken, took + text.clock_text(method))}
    for c in sorted(compared, key=lambda c: c.theirs.method != method):
        if c.row.case == ours.case:
            clock = text.clock_text(c.theirs.method) if c.theirs.method != method else ""
            said = f"{text.duration(c.theirs.median)}{clock} · {text.three_digits(c.ratio)}×"
            bars.setdefault(c.row.variant, (c.theirs, said))
    return bars


def _paint_bars(axes: Axes, bars: Mapping[str, tuple[Times, str]]) -> None:
    limit = 5 * bars[OURS][0].median  # beyond, a bar is broken off
    for y, (name, (times, said)) in enumerate(bars.items()):
        end = min(times.p80, limit)
        axes.barh(y, min(times.median, limit), BAR, color=_colour(name))
        if times.median <= limit:
            axes.plot([times.p20, end], [y, y], color=INK, lw=0.9)
        else:
            axes.text(0.9 * limit, y, "//", color="white", va="center", ha="center", weight="bold")
        _beside(axes, said, (end, y), size=7.5, weight="bold" if name == OURS else "normal")
    _bare(axes, bars)


def _paint_dots(axes: Axes, dots: Mapping[str, Sequence[Outcome]]) -> None:
    _ratio_axis(axes, [one.ratio for found in dots.values() for one in found])
    names = []
    for y, (name, found) in enumerate(dots.items()):
        ahead = [one.ratio >= 1 for one in found]
        names.append(f"{name}\nahead in {sum(ahead)} of {len(found)}")
        # The golden ratio scatters neighbours evenly.
        heights = [y + 0.5 * ((i * 0.618 + 0.5) % 1 - 0.5) for i in range(len(found))]
        colours = [COLOURS[OURS] if won else INK for won in ahead]
        x = [one.ratio for one in found]
        axes.scatter(x, heights, 25, colours, edgecolors="white", linewidths=0.5)
    axes.set_yticks(range(len(dots)), names)
    axes.set_ylim(len(dots) - 0.5, -0.5)
    axes.set_title("a baseline over ours; shaded: we lose", loc="right")


def latency(rows: Sequence[OpRow], against: Literal["batch", "num_tokens"]) -> Figure | None:
    """Time of `prune` with its spread; a panel for what else is the same, where two sizes are."""
    by_batch = against == "batch"

    def x_of(row: OpRow) -> int:
        return row.workload.batch if by_batch else row.workload.num_tokens

    def title(row: OpRow) -> str:
        w = row.workload
        size = f"N {w.num_tokens} · K {w.num_slots}" if by_batch else f"B {w.batch}"
        return " · ".join([size, w.dtype, *text.usage_texts(w)])

    def paint(axes: Axes, its: Sequence[OpRow]) -> None:
        lines = grouped(its, lambda row: (row.taken.method == "events", row.variant))
        ends: dict[str, Point] = {}
        for (launched, name), line in sorted(lines.items()):
            x, times = [x_of(row) for row in line], [row.taken for row in line]
            low, middle, high = zip(*map(_edges, times), strict=True)
            width, size = (2.2, 4.5) if name == OURS else (1.3, 3.5)
            style = {"color": _colour(name), "lw": width, "ms": size, "clip_on": False}
            axes.fill_between(x, low, high, color=_colour(name), alpha=0.18, lw=0)
            axes.plot(x, middle, "o--" if launched else "o-", **style)
            ends.setdefault(name, (x[-1], middle[-1]))
        slots = {x_of(row): "" if by_batch else f"\nK {row.workload.num_slots}" for row in its}
        axes.set(xscale="log", xlabel="images a call" if by_batch else "tokens an image")
        axes.set_xticks([*slots], [f"{x}{more}" for x, more in slots.items()])
        edges = [edge for row in its for edge in (row.taken.p20, row.taken.p80)]
        log_axis(axes, "y", edges, _round_duration)
        axes.grid(False, axis="x")
        _label(axes, ends)

    sizes = ("num_tokens", "batch") if by_batch else ("batch", "num_tokens")
    order = sorted(rows, key=lambda row: [getattr(row.workload, size) for size in sizes])
    groups = grouped(order, title).items()
    panels = {name: its for name, its in groups if len({*map(x_of, its)}) > 1}
    if not panels:
        return None
    drawn = [row for its in panels.values() for row in its]
    won = _won([c for c in tables.pair(drawn) if c.is_alike])
    said = f"prune against {'batch' if by_batch else 'N'}: {won}"
    figure = _panels(panels, 3, said, lambda _: 2.4, paint)
    if any(row.taken.method == "events" for row in drawn):
        figure.supxlabel("solid: by graph; dashed: launched", x=0.01, ha="left", fontsize=8)
    return figure


def roofline(files: Sequence[Results]) -> Figure | None:
    """For each file and dtype the measured ceilings, and a dot per op, variant and workload.

    Of several numbers of slots at one N, the smallest is drawn; of two methods, the graph.
    """
    panels: dict[str, tuple[float, float, list[OpRow]]] = {}
    for file in (file for file in files if file.suite in ("prune", "ops")):
        rows = [row for row in graph_first(file.op_rows()) if row.times and row.work.flops]
        copy = file.ceilings.copy_gb_s
        for dtype, its in grouped(rows, lambda row: row.workload.dtype).items():
            if peak := file.ceilings.matmul_tflops.get(dtype):
                rates = f"products {text.tflops_text(peak)}, copies {text.bandwidth_text(copy)}"
                dots = tables.fewest_slots(its)
                panels[f"{file.suite} · {dtype} · {rates}"] = peak, copy, dots
    if not panels:
        return None
    every = [row for _, _, dots in panels.values() for row in dots]
    said = "Roofline"
    if ours := [row for row in every if row.is_ours]:
        best = max(ours, key=lambda row: _at_roof(row)[1])
        rate = text.tflops_text(_at_roof(best)[1])
        said += f": ours reaches {rate} at most ({best.op} {best.direction}, {best.workload.dtype})"
    tall = max(3.2, LINE * max(len(_roof_labels(dots)) for _, _, dots in panels.values()) + 1.2)
    figure = _panels(panels, 2, said, lambda _: tall, _paint_roofline)
    _legend(figure, (row.variant for row in every))
    return figure


def _at_roof(row: OpRow) -> Point:
    return row.work.flops / row.work.bytes, row.work.flops / row.taken.median / 1e12


def _roof_labels(dots: Sequence[OpRow]) -> dict[str, Point]:
    """What names our dots: the workload where there is one op, else the op, at its best."""
    single = len({(row.op, row.direction) for row in dots}) == 1
    ours = sorted((row for row in dots if row.is_ours), key=lambda row: _at_roof(row)[1])
    return {_sizes(row) if single else row.op: _at_roof(row) for row in ours}


def _paint_roofline(axes: Axes, panel: tuple[float, float, Sequence[OpRow]]) -> None:
    peak, copy, dots = panel
    ridge, points = peak * 1e3 / copy, [_at_roof(row) for row in dots]
    log_axis(axes, "x", [*(x for x, _ in points), ridge / 12, ridge * 6], "{:g}".format)
    left, right = axes.get_xlim()
    roof = [left * copy / 1e3, peak, peak]
    log_axis(axes, "y", [*(y for _, y in points), *roof], "{:g}".format)
    axes.fill_between([left, ridge, right], roof, axes.get_ylim()[0], color=ROOF, lw=0)
    axes.plot([left, ridge, right], roof, color=INK, lw=1.4, zorder=1)
    for row in sorted(dots, key=lambda row: row.is_ours):
        size = 42 if row.is_ours else 20
        axes.scatter(
            *_at_roof(row), size, _colour(row.variant), edgecolors="white", linewidths=0.6,
            clip_on=False, zorder=2,
        )  # fmt: skip
    axes.set(xlabel="FLOP per byte", ylabel="TFLOP/s")
    _label(axes, _roof_labels(dots), lambda _: COLOURS[OURS])


def ratios(files: Sequence[Results], what: str) -> Figure | None:
    """Each baseline's time over ours with its spread, of `prune` or of all others; graphs first."""
    found = [(file.suite == "usage", c) for file in files for c in tables.comparisons_of([file])]
    panels: dict[str, dict[str, list[Comparison]]] = {}
    for is_usage, c in sorted(found, key=lambda one: (one[0], one[1].theirs.method != "graph")):
        row, load = c.row, c.row.workload
        is_prune = tables.is_prune(row) and not is_usage
        if is_prune != (what == "prune"):
            continue
        name = f"{row.op} {row.direction}"
        if is_prune:
            panel, line = load.dtype, _sizes(row)
        elif is_usage:
            panel = ", ".join(["usage", *text.usage_texts(replace(load, mode="no_grad"))])
            way = text.usage_texts(replace(load, threads=None))
            line = " · ".join([name.removesuffix(" forward"), *way, load.dtype])
        else:
            panel, line = "single ops", name
        panel += text.clock_text(c.theirs.method)
        panels.setdefault(panel, {}).setdefault(line, []).append(c)
    every = [c for lines in panels.values() for found in lines.values() for c in found]
    if not every:
        return None

    def height(lines: Mapping[str, Sequence[Comparison]]) -> float:
        return 0.9 + sum(max(0.19, 0.05 * len(found)) for found in lines.values())

    def paint(axes: Axes, lines: Mapping[str, Sequence[Comparison]]) -> None:
        its = [c for found in lines.values() for c in found]
        _ratio_axis(axes, [edge for c in its for edge in (c.low, c.high)])
        heights = [
            line + 0.75 * ((i + 0.5) / len(found) - 0.5)
            for line, found in enumerate(lines.values())
            for i in range(len(found))
        ]
        spreads = [(c.low, c.ratio, c.high) for c in its]
        _spreads(axes, spreads, heights, [_colour(c.row.variant) for c in its])
        axes.set_yticks(range(len(lines)), lines)
        axes.set_ylim(len(lines) - 0.4, -0.6)

    middle = text.three_digits(median(c.ratio for c in every))
    said = f"{what}: {_won(every)}, in the middle by {middle}×"
    figure = _panels(panels, 2 if len(panels) < 5 else 3, said, height, paint)
    _legend(figure, (c.row.variant for c in every))
    return figure


def stages(rows: Sequence[ModelRow]) -> Figure | None:
    """Per model at its smallest batch, a bar a row with its stages, and a dot for the whole."""
    models = grouped(rows, lambda row: row.model).values()
    short = [row for its in models for row in tables.shortlist(its) if row.times]
    panels = grouped(short, lambda row: f"{row.model}, batch {row.batch}")
    if not panels:
        return None

    def paint(axes: Axes, bars: Sequence[ModelRow]) -> None:
        times = [row.times for row in bars if row.times]
        heights, ends = range(len(times)), [0.0] * len(times)
        for stage, colour in zip(STAGES, STAGE_COLOURS, strict=True):
            widths = [t.stages[stage] for t in times]
            axes.barh(heights, widths, BAR, ends, color=colour, label=stage)
            ends = [end + width for end, width in zip(ends, widths, strict=True)]
        whole = [t.ttft for t in times]
        _spreads(axes, map(_edges, whole), heights, INK, label="the whole, measured")
        for y, row in enumerate(bars):
            ratio = tables.speed_up(row, rows) if row.is_pruned else None
            more = "" if ratio is None else f" · {text.three_digits(ratio)}×"
            _beside(axes, text.duration(whole[y].median) + more, (max(ends[y], whole[y].p80), y))
        _bare(axes, [f"{row.mode}, {tables.budget_text(row)}" for row in bars])

    said, pruned = "Time to the first token", [row for row in short if row.is_pruned]
    best = max(pruned, key=lambda row: tables.speed_up(row, rows) or 0, default=None)
    if best is not None and (ratio := tables.speed_up(best, rows)):
        where = f"{best.model}, {best.mode}, {tables.budget_text(best)}"
        said += f": {text.three_digits(ratio)}× at best ({where})"
    figure = _panels(panels, 2, said, lambda bars: 0.7 + 0.3 * len(bars), paint)
    (whole, *parts), _ = figure.axes[0].get_legend_handles_labels()
    marks = [*parts, whole]
    figure.legend(handles=marks, loc="outside lower left", ncols=len(marks), frameon=False)
    return figure


def selectors(rows: Sequence[SelectorRow]) -> Figure | None:
    """Time of an image against coverage at the smallest batch; by graph where there is one."""
    timed = [(row, row.graph or row.times, row.quality) for row in rows]
    known = [(row, times, found.coverage) for row, times, found in timed if times and found]
    panels: dict[str, list[tuple[SelectorRow, Times, float]]] = {}
    for size, dots in grouped(known, lambda dot: tables.size_text(dot[0].size)).items():
        batch = min(row.batch for row, _, _ in dots)
        panels[f"{size} · B {batch}"] = [dot for dot in dots if dot[0].batch == batch]
    if not panels:
        return None

    def paint(axes: Axes, dots: Sequence[tuple[SelectorRow, Times, float]]) -> None:
        its, times, coverages = zip(*dots, strict=True)
        colours = [_colour(row.method) for row in its]
        _spreads(axes, map(_edges, times), coverages, colours)
        axes.set(xlabel="time an image", ylabel="coverage")
        log_axis(axes, "x", [edge for t in times for edge in (t.p20, t.p80)], _round_duration)
        axes.margins(y=0.08)
        _label(axes, {row.method: (t.median, coverage) for row, t, coverage in dots})

    first = next(iter(panels.values()))
    best = max(first, key=lambda dot: dot[2])
    told = [best, *(dot for dot in first if dot[0].method == "oc-pruner" != best[0].method)]
    said = [f"{row.method} covers {c:.3f} in {text.duration(t.median)}" for row, t, c in told]
    tall = max(3.2, LINE * max(map(len, panels.values())) + 1)
    return _panels(panels, 2, "Selectors: " + ", ".join(said), lambda _: tall, paint)


@matplotlib.rc_context(STYLE)
def retention(files: Sequence[Retention]) -> Figure:
    """Accuracy against kept tokens, a line a method; a panel a model and positions."""
    panels = {each.title: each for each in answers(files)}
    names = sorted({name for each in panels.values() for name in each.methods} - {RANDOM})
    ours = [name for name in names if name.startswith(OC_PRUNER)]
    peers = [name for name in names if name not in ours]
    looks = {RANDOM: (INK, ":")}
    looks |= dict(zip(ours, product(PALETTE[:1], DASHES), strict=False))
    # Next to each other are different colours.
    looks |= {
        name: (colour, dash)
        for name, (dash, colour) in zip(peers, product(DASHES, PALETTE[1:]), strict=False)
    }

    def paint(axes: Axes, its: Answers) -> None:
        ends: dict[str, Point] = {}
        for name in its.methods:
            budgets = its.budgets_of(name)
            means = [100 * its.share(name, budget).mean for budget in budgets]
            colour, dash = looks[name]
            width = 2.2 if name in (*ours, RANDOM) else 1.3
            axes.plot(budgets, means, color=colour, ls=dash, lw=width, marker="o", ms=3)
            ends[name] = budgets[-1], means[-1]
        for name in its.others:
            axes.axhline(100 * its.share(name, its.budgets[0]).mean, color=SOFT, lw=0.7)
        axes.set(xscale="log", xlabel="kept tokens of 100", ylabel="right answers in %")
        axes.set_xticks(its.budgets, map(str, its.budgets))
        axes.minorticks_off()
        axes.invert_xaxis()
        _label(axes, ends, lambda name: looks[name][0])

    said = "right answers against kept tokens; thin lines: unpruned above, blind below"
    return _panels(panels, 2, said, lambda _: 4.2, paint)


def _edges(times: Times) -> tuple[float, float, float]:
    return times.p20, times.median, times.p80


def _sizes(row: OpRow) -> str:
    return text.workload_text(row.workload, dtype=False)


def _round_duration(seconds: float) -> str:
    return text.duration(seconds).replace(".00", "").replace(".0 ", " ")


def _won(found: Sequence[Versus]) -> str:
    if not found:
        return "no baseline beside it"
    return f"ours is ahead in {sum(one.ratio >= 1 for one in found)} of {len(found)} comparisons"


def _colour(name: str) -> str:
    return COLOURS.get(name, OTHER)


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(fill(title[0].upper() + title[1:], int(10 * width)), x=0.008, ha="left")
    return figure


def _panels(
    panels: Mapping[str, Panel],
    columns: int,
    title: str,
    height: Callable[[Panel], float],
    paint: Callable[[Axes, Panel], None],
) -> Figure:
    """A figure with a panel a title, row by row; heights are in inches."""
    columns = min(columns, len(panels))
    heights = list(map(height, panels.values()))
    tall = [max(heights[i : i + columns]) for i in range(0, len(heights), columns)]
    figure = _figure(WIDTH if columns > 1 else 0.62 * WIDTH, sum(tall) + 0.5, title)
    grid = figure.subplots(len(tall), columns, squeeze=False, height_ratios=tall)
    for axes, name in zip_longest(grid.flat, panels):
        if name is None:
            axes.remove()
        else:
            paint(axes, panels[name])
            axes.set_title(name)
    return figure


def _legend(figure: Figure, variants: Iterable[str]) -> None:
    names = sorted({*variants}, key=lambda name: ([*COLOURS, name].index(name), name))
    marks = [Line2D([], [], color=_colour(name), marker="o", lw=0, label=name) for name in names]
    figure.legend(
        handles=marks, loc="outside lower left", ncols=len(marks), frameon=False,
        labelcolor="linecolor", handletextpad=0.1,
    )  # fmt: skip


def _label(axes: Axes, points: Mapping[str, Point], colour: Callable[[str], str] = _colour) -> None:
    """Names in a column at the right with a line to their points, as high as these or apart."""
    inches = axes.bbox.height / axes.figure.dpi
    to_axes = axes.transData + axes.transAxes.inverted()
    at = apart({name: to_axes.transform(at)[1] for name, at in points.items()}, LINE / inches)
    for name, point in points.items():
        its = colour(name)
        arrow = {"arrowstyle": "-", "color": its, "lw": 0.5, "alpha": 0.5, "relpos": (0, 0.5)}
        axes.annotate(
            name, point, (1.05, at[name]), textcoords="axes fraction", va="center", color=its,
            weight="bold" if name.split()[0] in (OURS, "oc-pruner") else "normal",
            arrowprops={**arrow, "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip


def apart(heights: Mapping[str, float], gap: float) -> dict[str, float]:
    """Heights (0 to 1) moved up, then down from the top, until none is nearer than ``gap``."""
    at, below, above = dict(sorted(heights.items(), key=lambda one: one[1])), -1.0, 1.0
    for name in at:
        below = at[name] = max(at[name], below + gap)
    for name in reversed(at):
        above = at[name] = min(at[name], above - gap)
    return at


def _beside(axes: Axes, said: str, point: Point, **style: Any) -> None:
    """A text at the right of a point."""
    axes.annotate(said, point, (5, 0), textcoords="offset points", va="center", **style)


def _spreads(
    axes: Axes, spreads: Iterable[tuple[float, float, float]], heights: Sequence[float],
    colours: str | Sequence[str], **dots: Any,
) -> None:  # fmt: skip
    """A dot at each median, and a line from the low to the high end."""
    low, middle, high = zip(*spreads, strict=True)
    axes.hlines(heights, low, high, colours, lw=1.7, alpha=0.4)
    axes.scatter(middle, heights, 16, colours, zorder=2, **dots)


def _bare(axes: Axes, names: Iterable[str]) -> None:
    """Bars with their names, from the top, and without a scale."""
    names = list(names)
    axes.set_yticks(range(len(names)), names)
    axes.set(xticks=[], ylim=(len(names) - 0.4, -0.6))
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)


def _ratio_axis(axes: Axes, values: Sequence[float]) -> None:
    log_axis(axes, "x", [*values, 1.0], "{:g}×".format)
    axes.axvspan(axes.get_xlim()[0], 1, color=LOSS, lw=0)
    axes.axvline(1, color=INK, lw=1)
    axes.grid(False, axis="y")


def log_axis(axes: Axes, name: str, values: Sequence[float], shown: Callable[[float], str]) -> None:
    """A logarithmic axis, ``name`` x or y, wider than the values, with a few round ticks."""
    low, high = min(values), max(values)
    middle, half = (low * high) ** 0.5, max(high / low, 2.5) ** 0.58
    subs = next(subs for factor, subs in TICKS.items() if half**2 < factor)
    axes.set(**{f"{name}scale": "log", f"{name}lim": (middle / half, middle * half)})
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(lambda value, _: shown(value))
    axes.minorticks_off()
