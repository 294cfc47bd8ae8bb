"""The report: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ocvtp_kernels.report import end_to_end, pictures, selectors, settings
from ocvtp_kernels.report.drawing import MARKERS, SERIES, STAND_INS, Colours, Picture
from ocvtp_kernels.report.results import (
    KINDS,
    OP_KINDS,
    STAGES,
    MicroRow,
    ResultFile,
    Rows,
    graph_first,
    pipeline_file,
)
from ocvtp_kernels.report.style import CSS
from ocvtp_kernels.report.tables import (
    CLOCK_LEGEND,
    Comparisons,
    all_losses,
    clock_text,
    compare,
    provenance,
    ratio_text,
    share_text,
    summary,
    without_ours,
    workload_text,
)
from ocvtp_kernels.report.text import duration, three_digits, times_text

KIND_NAMES = {
    "prune": "The pipeline",
    "compile": "The pipeline beside torch.compile",
    "micro": "Micro-benchmarks",
    "settings": "Settings",
    "e2e": "End to end",
    "selectors": "Selectors",
}


def page(results: dict[str, list[ResultFile]]) -> str:
    """The whole page, a section per device."""
    body = "".join(_device(slug, files) for slug, files in results.items())
    links = " · ".join(
        f'<a href="#{escape(slug)}">{escape(files[0].device)}</a>'
        for slug, files in results.items()
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ocvtp-kernels: benchmarks</title>
<style>
{CSS}
</style>
</head>
<body>
<h1>ocvtp-kernels: benchmarks</h1>
<p>Every figure here was read from a result file. A <em>ratio</em> is a baseline's time over ours:
above 1×, ours is faster. A spread runs from the 20th to the 80th percentile. B images, N tokens,
K slots, T kept tokens (where T is not K); widths are C 1024 and D 512 unless said.
{CLOCK_LEGEND}</p>
<p class="soft">Devices: {links}</p>
{body}</body>
</html>
"""


def _device(slug: str, files: Sequence[ResultFile]) -> str:
    parts = [f'<section id="{escape(slug)}">\n<h2>{escape(files[0].device)}</h2>']
    files = sorted(files, key=lambda file: KINDS.index(file.kind))
    kinds: set[str] = {file.kind for file in files}
    if ops := [file for file in files if file.kind in OP_KINDS]:
        comparisons = [c for file in ops for c in compare(file.micro)]
        used = [row for file in files for row in file.settings]
        parts += [_tiles(ops, comparisons), _where_we_lose(ops, comparisons, used)]
        # In older files `prune` and its compiled variant are among the single ops.
        held = {row.variant for file in ops for row in file.micro if row.is_pipeline}
        kinds |= held & {"prune", "compile"}
    section = {"settings": _settings, "e2e": _end_to_end, "selectors": _selectors}
    for file in files:
        parts += section.get(file.kind, _ops)(file)
    for kind, name in KIND_NAMES.items():
        if kind not in kinds:
            parts.append(f"<h3>{name}</h3><p>Not measured on this device: no {kind}.json.</p>")
    parts.append("<h3>Where these figures come from</h3>")
    parts += [
        f'<p class="soft">{escape(f"{f.path.parent.name}/{f.path.name}")} · {escape(f.device)}'
        f" · {escape(provenance(f))}</p>"
        for f in files
    ]
    return "\n".join([*parts, "</section>\n"])


def _ops(file: ResultFile) -> list[str]:
    rows, comparisons = file.measured(), compare(file.micro)
    colours = pictures.colours_of(file.micro)
    main = [row for row in rows if row.op == "prune"]
    others = [row for row in rows if row.op != "prune"]
    parts = [f"<h3>{KIND_NAMES[file.kind]}</h3>"]
    if main:
        parts += [_legend(_only(colours, main)), _speed(file, main, comparisons, colours)]
    if rows:
        parts.append("<h4>Roofline</h4>" + _roofline(file, colours))
    if others:
        parts.append(f"<details><summary>The {'other ' if main else ''}ops</summary>")
        parts += [_legend(_only(colours, others)), _speed(file, others, comparisons, colours)]
        parts.append("</details>")
    if rows:
        parts.append("<details><summary>Every figure</summary>" + _all_rows(rows, comparisons))
        parts.append("</details>")
    if refused := file.refused():
        parts += ["<h4>Refused</h4>", _refused(refused)]
    return parts


def _refused(rows: Rows) -> str:
    """Variants that failed the correctness gate, once per reason."""
    held: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        key = (f"{row.op} {row.direction}", row.shown_variant, row.gate.note or "none recorded")
        held.setdefault(key, []).append(workload_text(row.workload))
    items = "".join(
        f"<li><b>{escape(op)}, {escape(variant)}</b>: {escape(reason)}"
        f'<br><span class="soft">{escape("; ".join(workloads))}</span></li>'
        for (op, variant, reason), workloads in held.items()
    )
    return f"<p>These did not pass the correctness gate, so they have no time.</p><ul>{items}</ul>"


def _list(sentences: Iterable[str], opening: str = "<ul>") -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"{opening}{items}</{opening[1:3]}>" if items else ""


def _losses(sentences: Sequence[str]) -> list[str]:
    return [_list(sentences, '<ol class="losses">')] if sentences else []


def _tiles(files: Sequence[ResultFile], comparisons: Comparisons) -> str:
    """The headline: prune forward, smallest workload of the dtype the device is fastest in."""
    tiles = []
    if (main := pipeline_file(files)) is not None:
        rows = graph_first(row for row in main.measured() if row.is_pipeline and row.is_ours)
        peaks = main.ceilings.matmul_tflops
        row = min(rows, key=lambda r: (-peaks.get(r.workload.dtype, 0.0), *_sizes(r)))
        if row.times is not None:
            where = f"prune, {workload_text(row.workload)}{clock_text(row.method)}"
            tiles.append(("ours", duration(row.times.median), where))
        for c in comparisons:
            if (c.op, c.direction, c.workload) == (row.op, row.direction, row.workload):
                kind = "lost" if c.is_loss else ""
                what = f"{c.baseline} over ours, there{clock_text(c.method)}"
                tiles.append((kind, f"{three_digits(c.ratio)}×", what))
    if comparisons:
        lost = sum(c.is_loss for c in comparisons)
        what = "comparisons, all ops, in which a baseline is faster"
        tiles.append(("lost" if lost else "", f"{lost} of {len(comparisons)}", what))
    inner = "".join(
        f'<div class="tile {kind}"><b>{escape(big)}</b><span>{escape(small)}</span></div>'
        for kind, big, small in tiles
    )
    return f'<div class="tiles">{inner}</div>'


def _sizes(row: MicroRow) -> tuple[int, int, int]:
    return row.workload.batch, row.workload.num_tokens, row.workload.num_slots or 0


def _where_we_lose(
    files: Sequence[ResultFile], comparisons: Comparisons, used: settings.Rows
) -> str:
    rows = [row for file in files for row in file.micro]
    text = f"<h3>Where we lose</h3><p>{escape(summary(rows, comparisons, used))}</p>"
    text += "".join(_losses(all_losses(comparisons, used)))
    if alone := [case for file in files for case in without_ours(file.micro)]:
        said = _list(f"{op} {direction}, {workload_text(w)}" for op, direction, w in alone)
        text += f"<p>A baseline has a time here and ours none by its method:</p>{said}"
    return text


def _speed(file: ResultFile, rows: Rows, comparisons: Comparisons, colours: Colours) -> str:
    parts = []
    for against, title in (("batch", "Latency against batch"), ("num_tokens", "Latency against N")):
        drawn = pictures.latency_pictures(file.name, rows, against, colours)
        note = f"{title} was measured at one size only." if not drawn else title
        parts.append(f"<h4>{note}</h4>{_figures(drawn)}")
    ratios = []
    for kind in dict.fromkeys((r.op, r.direction, r.workload.dtype, r.method) for r in rows):
        mine = [c for c in comparisons if (c.op, c.direction, c.workload.dtype, c.method) == kind]
        ratios += [pictures.ratio_picture(file.name, mine, colours)] if mine else []
    if ratios:
        parts.append(f"<h4>Against each baseline</h4>{_figures(ratios)}")
    return "".join(parts)


def _roofline(file: ResultFile, colours: Colours) -> str:
    drawn = pictures.roofline_pictures(file, colours)
    if not drawn:
        return "<p>Not drawn: the file lacks measured ceilings or counted FLOPs and bytes.</p>"
    markers = pictures.markers_of(file.micro)
    ops = "".join(f"<li>{MARKERS[m]} {escape(op)}</li>" for op, m in markers.items())
    legend = _legend(_only(colours, file.measured()))
    return f'{legend}<ul class="legend soft">{ops}</ul>{_figures(drawn)}'


def _end_to_end(file: ResultFile) -> list[str]:
    if not file.e2e:
        return ["<h3>End to end</h3><p>The file holds no row.</p>"]
    rows = file.e2e
    colours: Colours = {
        stage: SERIES[0] if stage == "pruner" else SERIES[i + 1] for i, stage in enumerate(STAGES)
    }
    parts = ["<h3>End to end</h3>", f"<p>{escape(end_to_end.LEGEND)}</p>"]
    if drawn := pictures.stage_pictures(rows):
        parts += [_legend(colours), _figures(drawn)]
    parts.append(f"<h4>Where pruning loses</h4><p>{escape(end_to_end.summary(rows))}</p>")
    parts += _losses(end_to_end.losses(rows))
    for model, mine in end_to_end.models_of(rows).items():
        noted = [(*end_to_end.cells(row, rows), row.note if row.times else "") for row in mine]
        parts += [f"<h4>{escape(model)}</h4>", _table((*end_to_end.HEADER, "note"), noted)]
    return parts


def _settings(file: ResultFile) -> list[str]:
    parts = ["<h3>Settings</h3>", f"<p>{escape(settings.LEGEND)}</p>"]
    parts.append(_table(settings.HEADER, settings.table(file.settings)))
    if refused := settings.refusals(file.settings):
        parts.append(f"<h4>Refused</h4>{_list(refused)}")
    return parts


def _selectors(file: ResultFile) -> list[str]:
    rows = file.selectors
    if not rows:
        return ["<h3>Selectors</h3><p>The file holds no row.</p>"]
    parts = ["<h3>Selectors</h3>", f"<p>{escape(selectors.LEGEND)}</p>"]
    for size in selectors.sizes_of(rows):
        parts += [f"<h4>{escape(str(size))}</h4>", _table(*selectors.table(rows, size))]
    parts.append(f"<h4>Where we lose</h4><p>{escape(selectors.summary(rows))}</p>")
    return parts + _losses([*selectors.losses(rows), *selectors.refusals(rows)])


def _all_rows(rows: Rows, comparisons: Comparisons) -> str:
    ratios = {
        (c.op, c.direction, c.workload, c.baseline, c.method): ratio_text(c) for c in comparisons
    }

    def cells(row: MicroRow) -> Iterable[str]:
        yield from (f"{row.op} {row.direction}", row.shown_variant, workload_text(row.workload))
        yield "" if row.times is None else times_text(row.times)
        yield row.method or ""
        yield ratios.get((row.op, row.direction, row.workload, row.variant, row.method), "")
        for value in (row.tflops, row.gb_s):
            yield "" if value is None else three_digits(value)
        yield share_text(row)

    header = (
        "op", "variant", "workload", "time per call", "timed by", "ratio", "TFLOP/s", "GB/s",
        "of ceiling",
    )  # fmt: skip
    return _table(header, (tuple(cells(row)) for row in rows))


def _figures(drawn: Iterable[Picture]) -> str:
    label = '<svg role="img" aria-label="{}"'
    inner = "".join(
        f"<figure>{p.svg.replace('<svg', label.format(escape(p.caption)), 1)}"
        f"<figcaption>{escape(p.caption)}</figcaption></figure>"
        for p in drawn
    )
    return f'<div class="pictures">{inner}</div>' if inner else ""


def _only(colours: Colours, rows: Rows) -> Colours:
    """The colours that these rows use."""
    seen = {row.shown_variant for row in rows}
    return {name: colour for name, colour in colours.items() if name in seen}


def _legend(colours: Colours) -> str:
    items = "".join(
        f'<li><i style="background:var(--{STAND_INS[c]})"></i>{escape(name)}</li>'
        for name, c in colours.items()
    )
    return f'<ul class="legend">{items}</ul>'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=wide' if len(cell) > 40 else ''}>{escape(cell)}</td>" for cell in row
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
