"""A device's page, and the blocks of README and docs/figures.md: Markdown from result files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from bench.report import tables, text
from bench.results import SUITES, ModelRow, OpRow, ProcessRow, Results, SelectorRow
from ocvtp_kernels.markdown import markdown_table

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
README_LOSSES, SHOWN_LOSSES = 5, 20
LEGEND = (
    "Every figure here was read from a result file. A ratio is a baseline's time over ours: above "
    "1×, ours is faster. A spread runs from the 20th to the 80th percentile; a ratio's, from its "
    "worst to its best. B images, N tokens, K slots, T kept tokens (where T is not K); widths are "
    "C 1024 and D 512 unless said. By graph: a CUDA graph's replay; launched: calls from Python "
    "between CUDA events, which count the host where it is the slower (one of torch.compile "
    "replays a CUDA graph of its own). Of the ceilings: the least time at the measured rates of "
    "copies and matrix products, over ours."
)
LEGENDS = {
    "compile": tables.APART,
    "usage": (
        "The package as people use it, and plain PyTorch used in the same way, in turns; times of "
        "one thread are CPU time. *eager* is the module that nobody froze, or the op's reference."
    ),
    "processes": "Beside the same with plain PyTorch, or a process that imports torch alone.",
    "attach": "Host time of a call with a selector attached, beside the same work by hand.",
    "merging": (
        "The layers that make LLaVA's tokens of one image: whole, and with tokens that merge in "
        "them (ToMe). Below it, what the merging alone takes."
    ),
    "e2e": (
        "TTFT: from pixels and ids on the device to the first token; its stages are timed apart. "
        "Speed-up: the unpruned model's TTFT over this one, same mode and batch. Static: a static "
        "cache, on a GPU with everything in CUDA graphs but what a note names. The pruner adds: to "
        "the encoder, over choosing at random. Weights are random."
    ),
    "selectors": (
        "Every method on the same images at the same budget: time per image in a batch of B, from "
        "tokens, keys and attention, which are given, to ids and kept rows; of a method with "
        "stages in the language model it is one stage. Tokens a layer: the mean over the 32 layers "
        "of LLaVA-1.5-7B, all stages counted. Coverage: the mean over all tokens of the cosine "
        "with the nearest kept token. Published / ours: its "
        "published code's time over ours, in turns on one image; loop: of the greedy loop alone, "
        "the matrix that it reads given to both. Images are random, smooth like an encoder's "
        "output, and the OC-pruner's weights are random too: coverage says how far a choice "
        "spreads, not how well a model answers with it."
    ),
}
NAMES = {
    "prune": "`prune`",
    "compile": "`prune` beside torch.compile",
    "ops": "Single ops",
    "usage": "Ways of use",
    "host": "The host's part of a call",
    "processes": "New processes",
    "attach": "Attaching",
    "merging": "Merging in the tower",
    "e2e": "End to end",
    "selectors": "Selectors",
    "ceilings": "Ceilings",
}
PICTURES = {  # what each shows, and the section that it stands in; "": the top of the page
    "overview": ("time per call, and every comparison", ""),
    "latency_batch": ("time per call against batch", "prune"),
    "latency_tokens": ("time per call against tokens", "prune"),
    "ratios_prune": ("each baseline's time over ours, with its spread", "prune"),
    "roofline": ("rates beside the measured ceilings", "ceilings"),
    "ratios_ops": ("each baseline's time over ours, with its spread", "ops"),
    "stages": ("stages of the time to the first token", "e2e"),
    "selectors": ("time against coverage", "selectors"),
}


def page(files: Sequence[Results], drawn: Iterable[str] = ()) -> str:
    """A device's page; ``drawn`` names the pictures that stand beside it."""
    drawn = set(drawn)
    blocks = [f"# {files[0].device}", tables.summaries(files)[0][0], *_pictures("", drawn)]
    blocks += [LEGEND, "## Where we lose", *_losses(files)]
    sections = {suite: [*_pictures(suite, drawn), *_section(suite, files)] for suite in SUITES}
    for suite, section in sections.items():
        blocks += [f"## {NAMES[suite]}", *section] if section else []
    if refused := tables.refusals(files):
        why = "The correctness gate refused these, or the note says why."
        blocks += ["## Without times", why, text.bullets(refused)]
    if missing := [f"{NAMES[suite]}: no {suite}.json." for suite in SUITES if not sections[suite]]:
        blocks += ["## Not measured on this device", text.bullets(missing)]
    sources = [f"{file.suite}.json: {file.device}; {text.provenance(file)}" for file in files]
    blocks += ["## Where these figures come from", text.bullets(sources)]
    return "\n\n".join(blocks) + "\n"


def _losses(files: Sequence[Results]) -> list[str]:
    blocks = []
    for said, lost in tables.summaries(files):
        blocks += [said, text.bullets(lost[:SHOWN_LOSSES])]
        if more := lost[SHOWN_LOSSES:]:
            blocks.append(text.folded(f"and {len(more)} more", text.bullets(more)))
    return [block for block in blocks if block]


def _pictures(suite: str, drawn: set[str]) -> list[str]:
    return [
        f"![{shows}]({name}.png)"
        for name, (shows, where) in PICTURES.items()
        if where == suite and name in drawn
    ]


def _section(suite: str, files: Sequence[Results]) -> list[str]:
    """A suite's tables; the ceilings are every file's."""
    if suite == "ceilings":
        return [_ceilings(files)]
    mine = [file for file in files if file.suite == suite]
    rows = [row for file in mine for row in file.rows]
    if not rows:
        return ["The file holds no row."] if mine else []
    blocks = tables.prune_table(files) if tables.prune_file(files) in mine else []
    blocks += [LEGENDS[suite]] if suite in LEGENDS else []
    if any(isinstance(row, OpRow) for row in rows):
        blocks += [text.folded("Every figure", tables.rows_table(file)) for file in mine]
    if processes := tables.rows_of(mine, ProcessRow):
        blocks.append(tables.processes_table(processes))
    models = tables.grouped(tables.rows_of(mine, ModelRow), lambda row: row.model)
    blocks += [text.folded(model, tables.models_table(its)) for model, its in models.items()]
    sizes = tables.grouped(
        tables.rows_of(mine, SelectorRow), lambda row: tables.size_text(row.size)
    )
    return blocks + [text.folded(size, tables.selectors_table(its)) for size, its in sizes.items()]


def _ceilings(files: Sequence[Results]) -> str:
    dtypes = list(dict.fromkeys(dtype for file in files for dtype in file.ceilings.matmul_tflops))
    lines = []
    for file in files:
        rates = [file.ceilings.matmul_tflops.get(dtype) for dtype in dtypes]
        products = ["" if rate is None else text.tflops_text(rate) for rate in rates]
        lines.append([file.suite, text.bandwidth_text(file.ceilings.copy_gb_s), *products])
    return markdown_table(["measured with", "copies", *dtypes], lines)


def readme_block(results: Mapping[str, Sequence[Results]]) -> str:
    """The text between the README's markers: a sentence a device."""
    return "\n".join(f"* {said}" for files in results.values() for said in _sentence(files))


def _sentence(files: Sequence[Results]) -> list[str]:
    """Our `prune` of the fewest images and tokens beside eager PyTorch, a dtype a clause."""
    file = tables.prune_file(files)
    if file is None:
        return []
    eager = {
        c.row.workload: c
        for c in tables.pairs_of([file])
        if tables.is_prune(c.row) and c.row.variant == "eager"
    }
    rows = [row for row in tables.our_prune(file) if row.workload in eager]
    if not rows:
        return []
    w = min(rows, key=lambda row: (row.workload.batch, row.workload.num_tokens)).workload
    said = [
        f"{row.workload.dtype} {text.times_text(row.taken)}, eager PyTorch "
        f"{text.ratio_text(eager[row.workload])} that"
        for row in rows
        if replace(row.workload, dtype=w.dtype) == w
    ]
    origin = text.provenance(replace(file, date=file.date[:10]))
    return [
        f"**{file.device}**: `prune`, {text.workload_text(w, dtype=False)}: {'; '.join(said)}. "
        f"<sub>{origin}</sub>"
    ]


def figures_block(results: Mapping[str, Sequence[Results]], folder: str) -> str:
    """The text between the markers of the page of figures: a short block a device.

    Args:
        folder: of the results, as the page links to it.
    """
    return "\n\n".join(
        block for slug, files in results.items() for block in _short(files, f"{folder}/{slug}")
    )


def _short(files: Sequence[Results], folder: str) -> list[str]:
    blocks = [f"**{files[0].device}**", *tables.prune_table(files)]
    if len(blocks) > 1 or tables.outcomes(files):
        blocks.append(f"![{PICTURES['overview'][0]}]({folder}/overview.png)")
    (said, lost), *others = tables.summaries(files)
    more = f" The worst {README_LOSSES}:" if len(lost) > README_LOSSES else ""
    blocks.append(f"Where we lose, in all that was measured: {said}{more}")
    blocks += [text.bullets(lost[:README_LOSSES])] if lost else []
    blocks += [" ".join(said for said, _ in others)] if others else []
    models = dict.fromkeys(row.model for row in tables.rows_of(files, ModelRow))
    blocks += [f"The whole models are {', '.join(models)}, their weights random."] if models else []
    methods = {row.method for row in tables.rows_of(files, SelectorRow)}
    blocks += [f"{len(methods)} selectors are compared on the device's page."] if methods else []
    measured = {file.suite for file in files}
    missing = [NAMES[suite] for suite in SUITES if suite not in {*measured, "ceilings"}]
    blocks += [f"Not measured here: {', '.join(missing)}."] if missing else []
    days = tables.grouped(files, lambda file: text.provenance(replace(file, date=file.date[:10])))
    origin = "; ".join(f"{', '.join(f.suite for f in its)}: {day}" for day, its in days.items())
    return [*blocks, f"<sub>[Every figure and picture]({folder}/README.md). {origin}</sub>"]


def rewrite_between_markers(text: str, inside: str) -> str:
    """``text`` with what stands between the two markers replaced.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(f"expected {START} and then {END}, once each")
    before, after = text.split(START)[0], text.split(END)[1]
    return f"{before}{START}\n{inside}\n{END}{after}"
