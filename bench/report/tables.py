"""What is compared with what, where we lose, and the tables: no figure is typed by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from bench.report.text import (
    clock_text,
    duration,
    megabytes,
    ratio_text,
    three_digits,
    times_text,
    workload_text,
)
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
from ocvtp_kernels.markdown import markdown_table

VARIANTS = (OURS, "eager", "compile", "published", "flashslice", "csrc", "colreduce")
COMPARED = ("prune", "compile", "ops", "usage")  # suites of ops beside baselines
APART = (
    "torch.compile has a run of its own, ours again beside it, both on one set of inputs that may "
    "be in the cache."
)
BASELINE, LOOPS = "A baseline is faster in", "Published loops are faster in"
LATER, SLOWER = "Pruning makes the first token later in", "Pruning makes decoding slower in"
# What `outcomes` finds of some kinds, how often we lose in it, and the rows that it is of.
SUMMARIES: tuple[tuple[tuple[str, ...], str, tuple[type[Row], ...]], ...] = (
    ((*COMPARED, "processes"), BASELINE, (OpRow, ProcessRow)),
    (("first token",), LATER, (ModelRow,)),
    (("decoding",), SLOWER, ()),
    (("published selectors",), LOOPS, (SelectorRow,)),
)
Size = tuple[int, int, int, str]  # of a table of selectors: N, T, C and the dtype
Some = TypeVar("Some", OpRow, ModelRow, SelectorRow, ProcessRow)


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


def pair(rows: Sequence[OpRow]) -> list[Comparison]:
    """Every baseline beside ours, timed by its method or, where ours lacks it, by another."""
    ours: dict[object, dict[Method, Times]] = {}
    for row in rows:
        if row.is_ours and row.times is not None:
            ours.setdefault(row.case, {})[row.times.method] = row.times
    return [
        Comparison(row.times, mine.get(row.times.method) or next(iter(mine.values())), row)
        for row in rows
        if not row.is_ours and row.times is not None and (mine := ours.get(row.case))
    ]


def pairs_of(files: Iterable[Results]) -> list[Comparison]:
    """Every pair of the suites that compare, each within its file."""
    return [c for file in files if file.suite in COMPARED for c in pair(file.op_rows())]


def comparisons_of(files: Iterable[Results]) -> list[Comparison]:
    """Of `pairs_of` what the same method timed."""
    return [c for c in pairs_of(files) if c.is_alike]


def without_ours(files: Iterable[Results]) -> list[str]:
    """Where a baseline has a time and ours none by its method."""
    found: dict[str, None] = {}
    for file in files:
        timed = [(row, (row.case, row.times.method)) for row in file.op_rows() if row.times]
        ours = {key for row, key in timed if row.is_ours}
        lone = [row for row, key in timed if key not in ours and file.suite in COMPARED]
        found |= dict.fromkeys(row_text(replace(row, variant="")) for row in lone)
    return list(found)


def fewest_slots(rows: Sequence[OpRow]) -> list[OpRow]:
    """Of each op's rows at each N, those with the fewest slots measured there."""

    def size(row: OpRow) -> tuple[object, ...]:
        return row.op, row.workload.num_tokens, row.workload.in_dim, row.workload.slot_dim

    fewest: dict[tuple[object, ...], int] = {}
    for row in rows:
        slots = row.workload.num_slots
        fewest[size(row)] = min(fewest.get(size(row), slots), slots)
    return [row for row in rows if row.workload.num_slots == fewest[size(row)]]


def is_prune(row: OpRow) -> bool:
    """Whether it is of `prune`, forward."""
    return (row.op, row.direction) == ("prune", "forward")


def prune_file(files: Sequence[Results]) -> Results | None:
    """Of a device's files one with times of our `prune` forward; prune.json is preferred."""
    for suite in ("prune", "ops", "compile"):
        for file in files:
            if file.suite == suite and our_prune(file):
                return file
    return None


def our_prune(file: Results | None) -> list[OpRow]:
    """Our `prune` forward in a file, at the fewest slots for each N, by graph if possible."""
    rows = [] if file is None else [r for r in file.op_rows() if is_prune(r) and r.times]
    return graph_first([row for row in fewest_slots(rows) if row.is_ours])


def headline(files: Sequence[Results]) -> tuple[OpRow, list[Comparison]] | None:
    """Our `prune` at the smallest workload in the dtype whose products are the fastest here."""
    file = prune_file(files)
    if file is None:
        return None
    rates = file.ceilings.matmul_tflops

    def order(row: OpRow) -> tuple[float, ...]:
        w = row.workload
        return -rates.get(w.dtype, 0.0), w.batch, w.num_tokens, w.num_slots

    row = min(our_prune(file), key=order)
    return row, [c for c in comparisons_of(files) if c.row.case == row.case]


class Outcome(NamedTuple):
    """A baseline beside ours, whose it is and where, and how its times are shown."""

    versus: Versus
    what: str
    show: Callable[[float], str] = duration


def outcomes(files: Sequence[Results]) -> dict[str, list[Outcome]]:
    """Every comparison, of ops, processes, models and selectors, by its kind."""
    found: dict[str, list[Outcome]] = {}
    for file in files:
        for c in comparisons_of([file]):
            what = f"{c.row.variant}'s time: {row_text(replace(c.row, variant=''))}"
            one = Outcome(c, what + clock_text(c.theirs.method))
            found.setdefault(file.suite, []).append(one)
    for process in rows_of(files, ProcessRow):
        what = f"plain PyTorch's: {process.name}, {process.what}"
        found.setdefault("processes", []).append(Outcome(process.versus, what, _unit(process)))
    models = rows_of(files, ModelRow)
    for row in models:
        whole = unpruned(row, models)
        if row.selector == OURS and row.times and whole:
            what = f"the unpruned model's time: {row_text(row)}"
            first = Outcome(Versus(whole.ttft, row.times.ttft), what)
            rates = (1 / t.decode_tokens_per_s for t in (whole, row.times))
            tokens = Versus(*(Times(t, t, t, 1) for t in rates))
            found.setdefault("first token", []).append(first)
            found.setdefault("decoding", []).append(Outcome(tokens, what, _tokens_per_s))
    for chosen in rows_of(files, SelectorRow):
        if chosen.published:
            what = f"the published loops' time: {row_text(chosen)}"
            found.setdefault("published selectors", []).append(Outcome(chosen.published, what))
    return found


def summaries(files: Sequence[Results]) -> list[tuple[str, list[str]]]:
    """How often we lose and how much has no times, in a sentence, and every loss, worst first."""
    every, said = outcomes(files), []
    for groups, sentence, kinds in SUMMARIES:
        found = [one for group in groups for one in every.get(group, [])]
        rows = [row for file in files for row in file.rows if isinstance(row, kinds)]
        bare = sum(getattr(row, "times", row) is None for row in rows)
        lost = sorted((one for one in found if one.versus.ratio < 1), key=lambda o: o.versus.ratio)
        first = [f"{sentence} {len(lost)} of {len(found)} comparisons."] if found else []
        first += [f"{bare} of {len(rows)} rows have no times."] if bare else []
        if first:
            said.append((" ".join(first), [_loss(one) for one in lost]))
    return said or [("No baseline has a time beside ours.", [])]


def _loss(one: Outcome) -> str:
    ours, theirs = one.show(one.versus.ours.median), one.show(one.versus.theirs.median)
    note = "; within the spread" if one.versus.is_within_spread else ""
    return f"{three_digits(1 / one.versus.ratio)}× {one.what} ({ours} against {theirs}{note})"


def _unit(row: ProcessRow) -> Callable[[float], str]:
    return duration if row.unit == "s" else megabytes


def _tokens_per_s(seconds: float) -> str:
    return f"{three_digits(1 / seconds)} tokens/s"


def row_text(row: Row) -> str:
    """What was measured, in words."""
    if isinstance(row, OpRow):
        variant = f", {row.variant}" if row.variant else ""
        return f"{row.op} {row.direction}{variant}, {workload_text(row.workload)}"
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
            held.setdefault(why or "no reason recorded", []).append(row_text(row))
    return [f"{why}: {'; '.join(where)}" for why, where in held.items()]


def share_text(file: Results, row: OpRow) -> str:
    """The share of the measured ceilings, where these were measured."""
    known = file.ceilings.matmul_tflops.keys() & {row.workload.dtype, "float32"}
    share = file.share_of_ceiling(row) if known and row.work.bytes else None
    return "" if share is None else f"{share:.1%}"


def prune_table(files: Sequence[Results]) -> list[str]:
    """A paragraph about our `prune` and its table; torch.compile may have a file of its own."""
    main = prune_file(files)
    if main is None:
        return []
    ours = our_prune(main)
    said = [
        "`prune`, forward, at the fewest slots measured for each N: time per call, median "
        "(20th to 80th percentile), and each baseline's time over ours."
    ]
    apart = [file for file in files if file.suite == "compile" and file is not main]
    compiled = [c for c in pairs_of(apart) if c.row.variant == "compile"]
    shown = {row.workload for row in ours}
    columns: dict[str, dict[Workload, str]] = {}
    for c in sorted([*pair(main.op_rows()), *compiled], key=_column_order):
        if is_prune(c.row) and c.row.workload in shown:
            columns.setdefault(_column(c), {})[c.row.workload] = ratio_text(c)
    on_gpu = any(row.times and row.times.method in ("graph", "events") for row in ours)
    said += ["Ours and unmarked ratios are by graph."] if on_gpu else []
    said += [APART] if compiled else []
    lines = []
    for row in ours:
        assert row.times is not None
        mark = clock_text(row.times.method) if row.times.method == "events" else ""
        ratios = [column.get(row.workload, "none") for column in columns.values()]
        share = [share_text(main, row)] if on_gpu else []
        lines.append([workload_text(row.workload), times_text(row.times) + mark, *ratios, *share])
    header = ["workload", "ours", *columns, *(["of the ceilings"] if on_gpu else [])]
    return [" ".join(said), markdown_table(header, lines)]


def _column(c: Comparison) -> str:
    method = c.theirs.method
    if not c.is_alike:
        return f"{c.row.variant}{clock_text(method)} / ours{clock_text(c.ours.method)}"
    return f"{c.row.variant} / ours" + (clock_text(method) if method == "events" else "")


def _column_order(c: Comparison) -> tuple[int, bool]:
    index = VARIANTS.index(c.row.variant) if c.row.variant in VARIANTS else len(VARIANTS)
    return index, c.theirs.method == "events"


def rows_table(file: Results) -> str:
    """Every row of a file of ops, with a ratio where a baseline is compared."""
    ratios = {c.row.key: ratio_text(c) for c in comparisons_of([file])}

    def cells(row: OpRow) -> list[str]:
        head = [f"{row.op} {row.direction}", row.variant, workload_text(row.workload)]
        if row.times is None:
            return [*head, f"refused: {row.gate.note}", *[""] * 5]
        note = f": {row.times.note}" if row.times.note else ""
        rates = (row.work.flops / 1e12, row.work.bytes / 1e9)
        return [
            *head,
            times_text(row.times),
            row.times.method + note,
            ratios.get(row.key, ""),
            *(three_digits(rate / row.times.median) if rate else "" for rate in rates),
            share_text(file, row),
        ]

    header = ["op", "variant", "workload", "time per call", "timed by", "ratio"]
    return markdown_table(
        [*header, "TFLOP/s", "GB/s", "of ceiling"], [cells(row) for row in file.op_rows()]
    )


def processes_table(rows: Sequence[ProcessRow]) -> str:
    """What new processes take."""

    def cells(row: ProcessRow) -> list[str]:
        pairs = row.versus.ours, row.versus.theirs
        shown = [times_text(t) if row.unit == "s" else megabytes(t.median) for t in pairs]
        return [row.name, row.what, *shown, ratio_text(row.versus)]

    return markdown_table(["process", "what", "ours", "plain", "plain / ours"], map(cells, rows))


def models_of(rows: Sequence[ModelRow]) -> dict[str, list[ModelRow]]:
    """Each model's rows."""
    models: dict[str, list[ModelRow]] = {}
    for row in rows:
        models.setdefault(row.model, []).append(row)
    return models


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
        stages = [times.stages.get(name, 0.0) for name in STAGES]
        return [
            *head,
            times_text(times.ttft),
            *(duration(seconds) if seconds else "not run" for seconds in stages),
            "" if ratio is None else f"{three_digits(ratio)}×",
            three_digits(times.decode_tokens_per_s),
            three_digits(times.cache_bytes / 2**20),
            _added_text(times),
            row.note,
        ]

    return markdown_table(header, map(cells, rows))


def _added_text(times: ModelTimes) -> str:
    added, encoder = times.pruner_added_s, times.stages.get("encoder")
    if added is None:
        return ""
    share = f", {added / encoder:.1%} of the encoder" if encoder else ""
    return f"{'−' if added < 0 else ''}{duration(abs(added))}{share}"


def size_text(size: Size) -> str:
    """What the methods of one table share."""
    num_tokens, budget, width, dtype = size
    return f"N {num_tokens} · T {budget} · C {width} · {dtype}"


def sizes_of(rows: Sequence[SelectorRow]) -> list[Size]:
    """The sizes measured, one a table, in the rows' order."""
    return list(dict.fromkeys(row.size for row in rows))


def selectors_table(rows: Sequence[SelectorRow], size: Size) -> str:
    """Of a size: a line a method, a column or two a batch."""
    mine = {(row.method, row.batch): row for row in rows if row.size == size}
    batches = sorted({batch for _, batch in mine})
    graphs = {row.batch for row in mine.values() if row.graph}
    columns = [(batch, False) for batch in batches] + [(batch, True) for batch in graphs]
    columns.sort()
    header = ["method", *(f"B {batch}{', graph' * graph}" for batch, graph in columns)]
    lines = []
    for method in dict.fromkeys(method for method, _ in mine):
        its = [mine[method, batch] for batch in batches if (method, batch) in mine]
        times = [_time(mine.get((method, batch)), graph) for batch, graph in columns]
        found = [next(filter(None, values), None) for values in (
            (row.published for row in its), (row.loop for row in its)
        )]  # fmt: skip
        ratios = ["" if one is None else f"{three_digits(one.ratio)}×" for one in found]
        lines.append([method, *times, *_kept(its), *ratios])
    header += ["coverage", "duplicates", "exactly T", "published / ours", "loop"]
    return markdown_table(header, lines)


def _time(row: SelectorRow | None, is_graph: bool) -> str:
    if row is None or row.times is None:
        return "" if row is None else "refused"
    times = row.graph if is_graph else row.times
    return "" if times is None else times_text(times)


def _kept(its: Sequence[SelectorRow]) -> tuple[str, str, str]:
    """Coverage of the largest batch, which has the most images; duplicates and T over all."""
    known = [row.quality for row in its if row.quality is not None]
    last = its[-1].quality
    coverage = "unknown" if last is None else f"{last.coverage:.3f}"
    if len(known) < len(its):
        return coverage, "unknown", "unknown"
    exact = "yes" if all(one.exact for one in known) else "no"
    return coverage, str(sum(one.duplicates for one in known)), exact


def measured_text(results: Mapping[str, Sequence[Results]], gpu: str, load: Workload) -> str:
    """The measured times of our `prune` on a GPU in half precision, for the projections."""
    size = load.batch, load.num_tokens, load.num_slots
    measured = [
        f"{times_text(row.times)}, {row.workload.dtype}"
        + ("" if row.times.method == "graph" else f", timed by {row.times.method}")
        for files in results.values()
        if (file := prune_file(files)) is not None and gpu in file.device
        for row in graph_first([row for row in file.op_rows() if row.is_ours and is_prune(row)])
        if row.times and row.workload.dtype in ("float16", "bfloat16")
        and (row.workload.batch, row.workload.num_tokens, row.workload.num_slots) == size
    ]  # fmt: skip
    return "; ".join(measured) or "not measured"
