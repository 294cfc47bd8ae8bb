"""What is compared with what, where we lose, and the tables: no figure is typed by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from bench.report import text
from bench.results import (
    OURS,
    STAGES,
    Method,
    ModelRow,
    ModelTimes,
    OpRow,
    ProcessRow,
    Results,
    Row,
    SelectorRow,
    Times,
    Versus,
    graph_first,
)
from bench.workloads import Workload
from ocvtp_kernels.cost.layers import stages_by_name, tokens_by_layer
from ocvtp_kernels.cost.models import VICUNA_7B
from ocvtp_kernels.markdown import markdown_table

VARIANTS = (OURS, "eager", "compile", "published", "flashslice", "csrc", "colreduce")
APART = (
    "torch.compile has a run of its own, ours again beside it, both on one set of inputs that may "
    "be in the cache."
)
# How often we lose, by the kind of an outcome and of a row: all other kinds are `BASELINE`'s.
BASELINE, LATER = "A baseline is faster in", "Pruning makes the first token later in"
SLOWER, LOOPS = "Pruning makes decoding slower in", "Published loops are faster in"
LOSSES = {"first token": LATER, "decoding": SLOWER, "published selectors": LOOPS}
LOSSES_OF: dict[type[Row], str] = {ModelRow: LATER, SelectorRow: LOOPS}
Size = tuple[int, int, int, str]  # of a table of selectors: N, T, C and the dtype
Some = TypeVar("Some", OpRow, ModelRow, SelectorRow, ProcessRow)
Item = TypeVar("Item")
Key = TypeVar("Key")


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Items by what they share; groups in the order of their first."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def rows_of(files: Iterable[Results], kind: type[Some]) -> list[Some]:
    """The rows of a kind in all files."""
    return [row for file in files for row in file.rows if isinstance(row, kind)]


@dataclass(frozen=True)
class Comparison(Versus):
    """A baseline beside ours at one workload."""

    row: OpRow  # the baseline's

    @property
    def is_alike(self) -> bool:
        """Whether one method timed both."""
        return self.theirs.method == self.ours.method


@dataclass(frozen=True)
class Outcome(Versus):
    """A baseline beside ours: of what kind, whose and where, and how its times are shown."""

    kind: str
    what: str
    show: Callable[[float], str] = text.duration


def pair(rows: Sequence[OpRow]) -> list[Comparison]:
    """Every baseline beside ours, timed by its method or, where ours lacks it, by another."""
    timed = [(row, row.times) for row in rows if row.times is not None]
    ours = grouped(((row.case, times) for row, times in timed if row.is_ours), lambda one: one[0])
    return [
        Comparison(
            theirs, min(ours[row.case], key=lambda one: one[1].method != theirs.method)[1], row
        )
        for row, theirs in timed
        if not row.is_ours and row.case in ours
    ]


def pairs_of(files: Iterable[Results]) -> list[Comparison]:
    """Every pair, each within its file."""
    return [c for file in files for c in pair(file.op_rows())]


def comparisons_of(files: Iterable[Results]) -> list[Comparison]:
    """Of `pairs_of` what the same method timed."""
    return [c for c in pairs_of(files) if c.is_alike]


def fewest_slots(rows: Sequence[OpRow]) -> list[OpRow]:
    """Of each op's rows at each N, those with the fewest slots measured there."""

    def size(row: OpRow) -> tuple[object, ...]:
        return row.op, row.workload.num_tokens, row.workload.in_dim, row.workload.slot_dim

    sizes = grouped(rows, size).items()
    fewest = {key: min(row.workload.num_slots for row in its) for key, its in sizes}
    return [row for row in rows if row.workload.num_slots == fewest[size(row)]]


def is_prune(row: OpRow) -> bool:
    """Whether it is of `prune`, forward."""
    return (row.op, row.direction) == ("prune", "forward")


def prune_file(files: Sequence[Results]) -> Results | None:
    """Of a device's files one with times of our `prune` forward; prune.json is preferred."""
    found = [f for s in ("prune", "ops", "compile") for f in files if f.suite == s and our_prune(f)]
    return found[0] if found else None


def prune_rows(file: Results | None) -> list[OpRow]:
    """The rows of `prune` forward that have times, at the fewest slots for each N."""
    rows = file.op_rows() if file else []
    return fewest_slots([row for row in rows if is_prune(row) and row.times])


def our_prune(file: Results | None) -> list[OpRow]:
    """Of `prune_rows` ours, by graph if possible."""
    return graph_first([row for row in prune_rows(file) if row.is_ours])


def outcomes(files: Sequence[Results]) -> list[Outcome]:
    """Every comparison, of ops, processes, models and selectors."""
    found: list[Outcome] = []
    for file in files:
        for c in comparisons_of([file]):
            where = row_text(replace(c.row, variant="")) + text.clock_text(c.theirs.method)
            what = f"{c.row.variant}'s time: {where}"
            found.append(Outcome(c.theirs, c.ours, file.suite, what))
    # Attaching adds to the work by hand, whatever it takes; merging is no other way to the same.
    others = (file for file in files if file.suite not in ("attach", "merging"))
    for process in rows_of(others, ProcessRow):
        times, what = process.versus, f"plain PyTorch's: {row_text(process)}"
        show = text.duration if process.unit == "s" else text.megabytes
        found.append(Outcome(times.theirs, times.ours, "processes", what, show))
    models = rows_of(files, ModelRow)
    for row in models:
        whole = unpruned(row, models)
        if row.selector == OURS and row.times and whole:
            what = f"the unpruned model's time: {row_text(row)}"
            found.append(Outcome(whole.ttft, row.times.ttft, "first token", what))
            tokens = (1 / t.decode_tokens_per_s for t in (whole, row.times))
            times = Versus(*(Times(t, t, t, 1) for t in tokens))
            found.append(Outcome(times.theirs, times.ours, "decoding", what, text.tokens_per_s))
    for chosen in rows_of(files, SelectorRow):
        if loops := chosen.published:
            what = f"the published loops' time: {row_text(chosen)}"
            found.append(Outcome(loops.theirs, loops.ours, "published selectors", what))
    return found


def summaries(files: Sequence[Results]) -> list[tuple[str, list[str]]]:
    """How often we lose and how much has no times, in a sentence, and every loss, worst first."""
    every = grouped(outcomes(files), lambda one: LOSSES.get(one.kind, BASELINE))
    each = (row for file in files for row in file.rows)
    measured = grouped(each, lambda row: LOSSES_OF.get(type(row), BASELINE))
    said = []
    for sentence in (BASELINE, *LOSSES.values()):
        found, rows = every.get(sentence, []), measured.get(sentence, [])
        bare = sum(getattr(row, "times", row) is None for row in rows)
        lost = sorted((one for one in found if one.ratio < 1), key=lambda one: one.ratio)
        first = [f"{sentence} {len(lost)} of {len(found)} comparisons."] if found else []
        first += [f"{bare} of {len(rows)} rows have no times."] if bare else []
        if first:
            said.append((" ".join(first), [_loss(one) for one in lost]))
    return said or [("No baseline has a time beside ours.", [])]


def _loss(one: Outcome) -> str:
    ours, theirs = one.show(one.ours.median), one.show(one.theirs.median)
    note = "; within the spread" if one.is_within_spread else ""
    return f"{text.three_digits(1 / one.ratio)}× {one.what} ({ours} against {theirs}{note})"


def row_text(row: Row) -> str:
    """What was measured, in words."""
    if isinstance(row, OpRow):
        variant = f", {row.variant}" if row.variant else ""
        return f"{row.op} {row.direction}{variant}, {text.workload_text(row.workload)}"
    if isinstance(row, ModelRow):
        return f"{row.model}, batch {row.batch}, {row.mode}, {budget_text(row)}"
    if isinstance(row, SelectorRow):
        return f"{row.method}, B {row.batch} · {size_text(row.size)}"
    return f"{row.name}, {row.what}"


def refusals(files: Sequence[Results]) -> list[str]:
    """What has no times, a line a reason."""
    held: dict[str, list[str]] = {}
    for row in (row for file in files for row in file.rows):
        if not isinstance(row, ProcessRow) and row.times is None:
            why = row.note if isinstance(row, ModelRow) else row.gate.note
            held.setdefault(why, []).append(row_text(row))
    return [f"{why}: {'; '.join(where)}" for why, where in held.items()]


def prune_table(files: Sequence[Results]) -> list[str]:
    """A paragraph about our `prune` and its table; torch.compile may have a file of its own."""
    main = prune_file(files)
    if main is None:
        return []
    ours = [(row, row.taken) for row in our_prune(main)]
    said = [
        "`prune`, forward, at the fewest slots measured for each N: time per call, median "
        "(20th to 80th percentile), and each baseline's time over ours."
    ]
    apart = [file for file in files if file.suite == "compile" and file is not main]
    compiled = [c for c in pairs_of(apart) if c.row.variant == "compile"]
    shown = {row.workload for row, _ in ours}
    columns: dict[str, dict[Workload, str]] = {}
    for c in sorted([*pairs_of([main]), *compiled], key=_column_order):
        if is_prune(c.row) and c.row.workload in shown:
            columns.setdefault(_column(c), {})[c.row.workload] = text.ratio_text(c)
    on_gpu = any(times.method in ("graph", "events") for _, times in ours)
    said += ["Ours and unmarked ratios are by graph."] if on_gpu else []
    said += [APART] if compiled else []
    lines = []
    for row, times in ours:
        ratios = [column.get(row.workload, "none") for column in columns.values()]
        share = [f"{main.share_of_ceiling(row):.1%}"] if on_gpu else []
        took = text.times_text(times) + _unless_graph(times.method)
        lines.append([text.workload_text(row.workload), took, *ratios, *share])
    header = ["workload", "ours", *columns, *(["of the ceilings"] if on_gpu else [])]
    return [" ".join(said), markdown_table(header, lines)]


def _unless_graph(method: Method) -> str:
    return "" if method == "graph" else text.clock_text(method)


def _column(c: Comparison) -> str:
    if c.is_alike:
        return f"{c.row.variant} / ours{_unless_graph(c.ours.method)}"
    return (
        f"{c.row.variant}{text.clock_text(c.theirs.method)} / ours{text.clock_text(c.ours.method)}"
    )


def _column_order(c: Comparison) -> tuple[int, bool]:
    return [*VARIANTS, c.row.variant].index(c.row.variant), c.theirs.method == "events"


def rows_table(file: Results) -> str:
    """Every row of a file of ops, with a ratio where a baseline is compared."""
    ratios = {c.row.key: text.ratio_text(c) for c in comparisons_of([file])}

    def cells(row: OpRow) -> list[str]:
        head, times = (
            [f"{row.op} {row.direction}", row.variant, text.workload_text(row.workload)],
            row.times,
        )
        if times is None:
            return [*head, f"refused: {row.gate.note}", *[""] * 5]
        note = f": {times.note}" if times.note else ""
        rates = (row.work.flops / 1e12, row.work.bytes / 1e9)
        return [
            *head,
            text.times_text(times),
            times.method + note,
            ratios.get(row.key, ""),
            *(text.three_digits(rate / times.median) if rate else "" for rate in rates),
            f"{file.share_of_ceiling(row):.1%}",
        ]

    header = ["op", "variant", "workload", "time per call", "timed by", "ratio"]
    header += ["TFLOP/s", "GB/s", "of ceiling"]
    return markdown_table(header, map(cells, file.op_rows()))


def processes_table(rows: Sequence[ProcessRow]) -> str:
    """What new processes take."""

    def cells(row: ProcessRow) -> list[str]:
        pairs = row.versus.ours, row.versus.theirs
        shown = [text.times_text(t) if row.unit == "s" else text.megabytes(t.median) for t in pairs]
        return [row.name, row.what, *shown, text.ratio_text(row.versus)]

    return markdown_table(["process", "what", "ours", "plain", "plain / ours"], map(cells, rows))


def shortlist(rows: Sequence[ModelRow]) -> list[ModelRow]:
    """The unpruned model and the pruner at the smallest batch."""
    smallest = min((row.batch for row in rows), default=0)
    return [row for row in rows if row.batch == smallest and row.selector != "random"]


def unpruned(row: ModelRow, rows: Sequence[ModelRow]) -> ModelTimes | None:
    """The unpruned model's times in a row's mode and batch."""
    key = (row.model, row.mode, row.batch)
    same = (r.times for r in rows if (r.model, r.mode, r.batch) == key and not r.is_pruned)
    return next(same, None)


def speed_up(row: ModelRow, rows: Sequence[ModelRow]) -> float | None:
    """The unpruned model's TTFT over a row's; None where one of them has no time."""
    whole = unpruned(row, rows)
    return whole.ttft.median / row.times.ttft.median if row.times and whole else None


def budget_text(row: ModelRow) -> str:
    """The budget, or that nothing was pruned."""
    return f"{row.budget} of {row.num_tokens}" if row.is_pruned else f"all {row.num_tokens}"


def models_table(rows: Sequence[ModelRow]) -> str:
    """A model's rows; one without figures has its note alone."""
    header = ["batch", "mode", "selector", "vision tokens", "TTFT", *STAGES, "speed-up"]
    header += ["decode tokens/s", "KV MiB", "pruner adds", "note"]

    def cells(row: ModelRow) -> list[str]:
        head, times = [str(row.batch), row.mode, row.selector, budget_text(row)], row.times
        if times is None:
            return [*head, *[""] * (len(header) - 5), row.note]
        ratio = speed_up(row, rows) if row.is_pruned else None
        stages = [times.stages[name] for name in STAGES]
        return [
            *head,
            text.times_text(times.ttft),
            *(text.duration(seconds) if seconds else "not run" for seconds in stages),
            "" if ratio is None else f"{text.three_digits(ratio)}×",
            text.three_digits(times.decode_tokens_per_s),
            text.three_digits(times.cache_bytes / 2**20),
            "" if times.pruner_added_s is None else _added_text(times.pruner_added_s, times),
            row.note,
        ]

    return markdown_table(header, map(cells, rows))


def _added_text(added: float, times: ModelTimes) -> str:
    share = added / times.stages["encoder"]
    return f"{'−' if added < 0 else ''}{text.duration(abs(added))}, {share:.1%} of the encoder"


def size_text(size: Size) -> str:
    """What the methods of one table share."""
    num_tokens, budget, width, dtype = size
    return f"N {num_tokens} · T {budget} · C {width} · {dtype}"


def selectors_table(rows: Sequence[SelectorRow]) -> str:
    """Of the rows of a size: a line a method, a column or two a batch."""
    rows = sorted(rows, key=lambda row: row.batch)
    columns: dict[str, dict[str, str]] = {}
    for row in rows:
        took = "refused" if row.times is None else text.times_text(row.times)
        columns.setdefault(f"B {row.batch}", {})[row.method] = took
        if row.graph:
            columns.setdefault(f"B {row.batch}, graph", {})[row.method] = text.times_text(row.graph)
    lines = []
    for method, its in grouped(rows, lambda row: row.method).items():
        times = [column.get(method, "") for column in columns.values()]
        versus = [[row.published for row in its], [row.loop for row in its]]
        ratios = [
            next((f"{text.three_digits(one.ratio)}×" for one in each if one), "") for each in versus
        ]
        # Of the largest batch, which has the most images; duplicates and T are over all.
        known = [row.quality for row in its if row.quality is not None]
        kept = ["unknown"] * 3
        if len(known) == len(its):
            exact = "yes" if all(one.exact for one in known) else "no"
            kept = [f"{known[-1].coverage:.3f}", str(sum(one.duplicates for one in known)), exact]
        lines.append([method, *times, _tokens_a_layer(its[0]), *kept, *ratios])
    header = ["method", *columns, "tokens a layer", "coverage", "duplicates", "exactly T"]
    return markdown_table([*header, "published / ours", "loop"], lines)


def _tokens_a_layer(row: SelectorRow) -> str:
    """That the layers of LLaVA-1.5-7B read on their mean; empty without a schedule."""
    depth = VICUNA_7B.layers
    try:
        stages = stages_by_name(row.method, row.budget, depth)
    except ValueError:
        return ""
    by_layer = tokens_by_layer(stages, row.num_tokens, row.budget, depth)
    return f"{sum(by_layer) / depth:.0f}"


def measured_text(results: Mapping[str, Sequence[Results]], gpu: str, load: Workload) -> str:
    """The measured times of our `prune` on a GPU in half precision, for the projections."""
    halves = [replace(load, dtype=dtype) for dtype in ("float16", "bfloat16")]
    files = [file for files in results.values() if (file := prune_file(files))]
    rows = [row for file in files if gpu in file.device for row in graph_first(file.op_rows())]
    measured = [
        f"{text.times_text(row.times)}, {row.workload.dtype}"
        + ("" if row.times.method == "graph" else f", timed by {row.times.method}")
        for row in rows
        if row.is_ours and is_prune(row) and row.workload in halves and row.times
    ]
    return "; ".join(measured) or "not measured"
