"""The report's pictures: latency, rooflines, ratios and stages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import atan2, degrees, log
from typing import Any

from ocvtp_kernels.report.drawing import (
    CARD,
    GRID,
    INK,
    KNOWN_VARIANTS,
    LOSS,
    MARKERS,
    SERIES,
    Colours,
    Picture,
    apart,
    draw,
    nice_ticks,
    padded,
)
from ocvtp_kernels.report.end_to_end import budget_text, models_of, shortlist, speed_up
from ocvtp_kernels.report.results import (
    STAGES,
    EndToEndRow,
    MicroRow,
    ResultFile,
    Rows,
    graph_first,
)
from ocvtp_kernels.report.tables import (
    Comparisons,
    clock_text,
    fewest_slots,
    width_text,
    workload_text,
)
from ocvtp_kernels.report.text import duration, three_digits, times_text


def colours_of(rows: Rows) -> Colours:
    """A colour per shown variant: ours and the known baselines always the same."""
    seen = {row.shown_variant for row in rows}
    order = [*KNOWN_VARIANTS, *sorted(seen.difference(KNOWN_VARIANTS))]
    return {name: SERIES[min(i, len(SERIES) - 1)] for i, name in enumerate(order) if name in seen}


def markers_of(rows: Rows) -> dict[str, str]:
    """A marker per op."""
    ops, shapes = dict.fromkeys(row.op for row in rows), list(MARKERS)
    return {op: shapes[min(i, len(shapes) - 1)] for i, op in enumerate(ops)}


def latency_pictures(where: str, rows: Rows, against: str, colours: Colours) -> list[Picture]:
    """Median time with its spread, against ``"batch"`` or ``"num_tokens"``.

    One picture per op, direction, dtype, method and value of the other of the two; of several
    numbers of slots at one N, the smallest is drawn. A picture with a single point is left out.
    ``where`` names the file.
    """
    other = "num_tokens" if against == "batch" else "batch"
    groups: dict[tuple[Any, ...], list[MicroRow]] = {}
    for row in rows:
        if row.times is not None:
            w = row.workload
            key = (row.op, row.direction, w.dtype, row.method, width_text(w), getattr(w, other))
            groups.setdefault(key, []).append(row)
    pictures = []
    for (op, direction, dtype, method, width, fixed), group in groups.items():
        drawn = fewest_slots(group)
        values = sorted({getattr(row.workload, against) for row in drawn})
        if len(values) < 2:
            continue
        slots = {getattr(r.workload, against): r.workload.num_slots for r in drawn}
        ticks = [
            f"{v}" if against == "batch" or slots[v] is None else f"{v}\nK {slots[v]}"
            for v in values
        ]
        label = "batch (images)" if against == "batch" else "tokens per image, and slots"
        paint = partial(
            _paint_latency, rows=drawn, against=against, ticks=ticks, label=label, colours=colours
        )
        ours = [r.times for r in drawn if r.is_ours and getattr(r.workload, against) == values[-1]]
        fixed_text = f"B {fixed}" if other == "batch" else _tokens_text(fixed, slots[values[-1]])
        caption = (
            f"{op} {direction}, {dtype}, {fixed_text}{width and f', {width}'}{clock_text(method)}."
        )
        if ours and ours[0] is not None:
            caption += f" Ours at {values[-1]}: {times_text(ours[0])}."
        name = f"{where}-{against}-{op}-{direction}-{dtype}-{method}-{width}-{fixed}"
        pictures.append(Picture(draw(name, 3.1, paint), caption))
    return pictures


def _tokens_text(num_tokens: int, num_slots: int | None) -> str:
    return f"N {num_tokens}" + ("" if num_slots is None else f", K {num_slots}")


def _paint_latency(
    axes: Any, rows: Rows, against: str, ticks: Sequence[str], label: str, colours: Colours
) -> None:
    lines: dict[str, list[tuple[int, float, float, float]]] = {}
    for row in rows:
        if row.times is not None:
            t, x = row.times, getattr(row.workload, against)
            lines.setdefault(row.shown_variant, []).append((x, t.median, t.p20, t.p80))
    for name, points in lines.items():
        x, median, p20, p80 = zip(*sorted(points), strict=True)
        colour, mine = colours[name], name == "ocvtp"
        axes.fill_between(x, p20, p80, color=colour, alpha=0.18, linewidth=0)
        axes.plot(
            x, median, "o-", color=colour, lw=2.6 if mine else 1.6, ms=6 if mine else 4.5,
            zorder=3 if mine else 2, clip_on=False,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel=label)
    axes.set_xticks(sorted({getattr(row.workload, against) for row in rows}), ticks)
    axes.minorticks_off()
    _time_axis(axes, [t for points in lines.values() for p in points for t in p[1:]])
    axes.grid(axis="y")
    ends = {name: max(points)[1] for name, points in lines.items()}
    low, high = (log(edge) for edge in axes.get_ylim())
    at = apart({name: (log(end) - low) / (high - low) for name, end in ends.items()})
    for name, y in at.items():
        axes.text(
            1.03, y, name, color=colours[name], transform=axes.transAxes, va="center",
            weight="bold" if name == "ocvtp" else "normal",
        )  # fmt: skip


def _time_axis(axes: Any, seconds: Sequence[float]) -> None:
    limits = padded(seconds)
    axes.set_ylim(*limits)
    ticks = nice_ticks(*limits)
    axes.set_yticks(ticks, [duration(t).replace(".00", "").replace(".0 ", " ") for t in ticks])


def roofline_pictures(file: ResultFile, colours: Colours) -> list[Picture]:
    """One roofline per dtype: the measured ceilings, and a dot per op, variant and workload.

    Of several numbers of slots at one N, the smallest is drawn; of two methods, the graph.
    """
    pictures = []
    markers, measured = markers_of(file.micro), graph_first(file.measured())
    for dtype in dict.fromkeys(row.workload.dtype for row in measured):
        rows = [row for row in measured if row.workload.dtype == dtype]
        dots = [row for row in fewest_slots(rows) if row.flops and row.bytes and row.tflops]
        peak, copy = file.ceilings.matmul_tflops.get(dtype), file.ceilings.copy_gb_s
        if not dots or not peak or not copy:
            continue
        paint = partial(
            _paint_roofline, rows=dots, peak=peak, copy=copy, colours=colours,
            markers=markers,
        )  # fmt: skip
        caption = f"{dtype}: copy {_rate(copy)}, matmul {_tflops(peak)}, both measured."
        best = max((r for r in dots if r.is_ours), key=lambda r: r.tflops or 0, default=None)
        if best is not None:
            caption += (
                f" Ours reaches {_tflops(best.tflops or 0)} at most: {best.op} {best.direction}, "
                f"{workload_text(best.workload, dtype=False)}."
            )
        pictures.append(Picture(draw(f"{file.name}-roofline-{dtype}", 3.6, paint), caption))
    return pictures


def _paint_roofline(
    axes: Any, rows: Rows, peak: float, copy: float, colours: Colours, markers: dict[str, str]
) -> None:
    points = [((r.flops or 0) / (r.bytes or 1), r.tflops or 0.0, r) for r in rows]
    ridge = peak * 1e3 / copy
    left, right = padded([*(x for x, _, _ in points), ridge / 12, ridge * 6])
    bottom, top = min(y for _, y, _ in points) / 2, peak * 2.2
    roof = [min(peak, x * copy / 1e3) for x in (left, ridge, right)]
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(min(bottom, roof[0] / 2), top))
    axes.fill_between([left, ridge, right], roof, axes.get_ylim()[0], color=GRID, alpha=0.25, lw=0)
    axes.plot([left, ridge, right], roof, color=INK, lw=1.6, zorder=1)
    for x, y, row in sorted(points, key=lambda p: p[2].is_ours):
        axes.plot(
            x, y, markers[row.op], color=colours[row.shown_variant], mec=CARD, mew=0.7,
            ms=8 if row.is_ours else 6, alpha=1 if row.is_ours else 0.6, clip_on=False,
        )  # fmt: skip
    axes.text(right, peak * 1.12, f"matmul {_tflops(peak)}", ha="right", va="bottom")
    (x0, y0), (x1, y1) = axes.transData.transform([(left, roof[0]), (ridge, peak)])
    axes.text(
        left * 1.1, roof[0] * 1.1 * 1.2, f"copy {_rate(copy)}", va="bottom",
        rotation=degrees(atan2(y1 - y0, x1 - x0)), rotation_mode="anchor",
    )  # fmt: skip
    axes.minorticks_off()
    for axis, unit in ((axes.xaxis, "FLOP per byte"), (axes.yaxis, "TFLOP/s")):
        ticks = nice_ticks(*axis.get_view_interval())
        axis.set_ticks(ticks, [f"{t:g}" for t in ticks])
        axis.set_label_text(unit)
    axes.grid()


def _rate(gb_s: float) -> str:
    return f"{three_digits(gb_s / 1e3)} TB/s" if gb_s >= 1e3 else f"{three_digits(gb_s)} GB/s"


def _tflops(value: float) -> str:
    return (
        f"{three_digits(value)} TFLOP/s" if value >= 1 else f"{three_digits(value * 1e3)} GFLOP/s"
    )


def ratio_picture(where: str, comparisons: Comparisons, colours: Colours) -> Picture:
    """Each baseline's time over ours with its spread: a line a workload, all else the same.

    ``where`` names the file.
    """
    first = comparisons[0]
    lines = list(dict.fromkeys(c.workload for c in comparisons))
    paint = partial(_paint_ratios, comparisons=comparisons, colours=colours)
    lost = sum(c.is_loss for c in comparisons)
    middle = sorted(c.ratio for c in comparisons)[len(comparisons) // 2]
    caption = (
        f"{first.op} {first.direction}, {first.workload.dtype}{clock_text(first.method)}: a "
        "baseline's time over ours, the bar from the worst to the best of the spreads. Median of "
        f"all {three_digits(middle)}×; a baseline is faster in {lost} of {len(comparisons)}."
    )
    name = f"{where}-ratio-{first.op}-{first.direction}-{first.workload.dtype}-{first.method}"
    height = 0.9 + 0.27 * len(lines)
    return Picture(draw(name, height, paint), caption)


def _paint_ratios(axes: Any, comparisons: Comparisons, colours: Colours) -> None:
    lines = list(dict.fromkeys(c.workload for c in comparisons))
    names = list(dict.fromkeys(c.baseline for c in comparisons))
    for c in comparisons:
        y = lines.index(c.workload) + 0.5 * ((names.index(c.baseline) + 0.5) / len(names) - 0.5)
        axes.plot([c.low, c.high], [y, y], color=colours[c.baseline], lw=2, alpha=0.45)
        axes.plot(c.ratio, y, "o", color=colours[c.baseline], ms=5.5)
    low, high = padded([*(c.low for c in comparisons), *(c.high for c in comparisons), 1.0])
    axes.axvspan(low, 1, color=LOSS, alpha=0.10, lw=0)
    axes.axvline(1, color=INK, lw=1.2)
    axes.set(xscale="log", xlim=(low, high), ylim=(len(lines) - 0.4, -0.6))
    axes.minorticks_off()
    ticks = sorted({*nice_ticks(low, high), 1.0})
    axes.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    axes.set_yticks(range(len(lines)), [workload_text(w, dtype=False) for w in lines])
    axes.set_xlabel("shaded: the baseline is faster")
    axes.grid(axis="x")


def stage_pictures(rows: Sequence[EndToEndRow]) -> list[Picture]:
    """Per model at its smallest batch, a bar a row with its stages, and a dot for the whole."""
    pictures = []
    for model, mine in models_of(rows).items():
        bars = [row for row in shortlist(mine) if row.times is not None]
        if not bars:
            continue
        svg = draw(f"stages-{model}", 0.7 + 0.42 * len(bars), partial(_paint_stages, rows=bars))
        caption = f"{model}, batch {bars[0].batch}: the time to the first token, its stages beside."
        best = max(bars, key=lambda row: speed_up(row, mine) or 0.0)
        if best.is_pruned and (ratio := speed_up(best, mine)) is not None:
            caption += f" At best {three_digits(ratio)}×: {best.mode}, {budget_text(best)}."
        pictures.append(Picture(svg, caption))
    return pictures


def _paint_stages(axes: Any, rows: Sequence[EndToEndRow]) -> None:
    for y, row in enumerate(rows):
        if row.times is None:
            continue
        start, whole = 0.0, row.times.ttft.median
        for i, stage in enumerate(STAGES):
            seconds = row.times.stages[stage]
            # The pruner is ours, so it takes our colour.
            colour = SERIES[0] if stage == "pruner" else SERIES[i + 1]
            axes.barh(y, seconds, left=start, height=0.62, color=colour, lw=0)
            start += seconds
        axes.plot(whole, y, "o", color=INK, ms=4.5, clip_on=False)
        axes.annotate(
            duration(whole), (max(start, whole), y), (7, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(rows)), [f"{row.mode}, {budget_text(row)}" for row in rows])
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
