"""What is compared with what, where we lose, and the tables: no figure is typed by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

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
    Direction,
    Method,
    ModelRow,
    ModelTimes,
    OpRow,
    ProcessRow,
    Results,
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
ROW_HEADER = (
    "op", "variant", "workload", "time per call", "timed by", "ratio", "TFLOP/s", "GB/s",
    "of ceiling",
)  # fmt: skip
MODEL_HEADER = (
    "batch", "mode", "selector", "vision tokens", "TTFT", *STAGES, "speed-up", "decode tokens/s",
    "KV MiB", "pruner adds", "note",
)  # fmt: skip
PROCESS_HEADER = ("process", "what", "ours", "plain", "plain / ours")
Size = tuple[int, int, int, str]  # of a table of selectors: N, T, C and the dtype
Some = TypeVar("Some", OpRow, ModelRow, SelectorRow, ProcessRow)


def rows_of(files: Iterable[Results], kind: type[Some]) -> list[Some]:
    """The rows of a kind in all files."""
    return [row for file in files for row in file.rows if isinstance(row, kind)]


@dataclass(frozen=True)
class Comparison(Versus):
    """A baseline beside ours at one workload."""

    op: str
    direction: Direction
    workload: Workload
    baseline: str
    our_method: Method
    method: Method  # of the baseline

    @property
    def is_loss(self) -> bool:
        """Whether the baseline's median is below ours."""
        return self.ratio < 1

    @property
    def case(self) -> tuple[str, Direction, Workload]:
        """As of an `OpRow`."""
        return self.op, self.direction, self.workload


def pair(rows: Sequence[OpRow]) -> list[Comparison]:
    """Every baseline beside ours, timed by its method or, where ours lacks it, by another."""
    ours: dict[tuple[str, Direction, Workload], dict[Method, Times]] = {}
    for row in rows:
        if row.is_ours and row.times is not None:
            ours.setdefault(row.case, {})[row.times.method] = row.times
    pairs = []
    for row in rows:
        mine = ours.get(row.case, {})
        if not row.is_ours and row.times is not None and mine:
            method = row.times.method if row.times.method in mine else next(iter(mine))
            about = *row.case, row.variant, method, row.times.method
            pairs.append(Comparison(row.times, mine[method], *about))
    return pairs


def compare(rows: Sequence[OpRow]) -> list[Comparison]:
    """Of `pair` what the same method timed, in the rows' order."""
    return [c for c in pair(rows) if c.method == c.our_method]


def pairs_of(files: Iterable[Results]) -> list[Comparison]:
    """Every pair of the suites that compare, each within its file."""
    return [c for file in files if file.suite in COMPARED for c in pair(file.op_rows())]


def comparisons_of(files: Iterable[Results]) -> list[Comparison]:
    """Of `pairs_of` what the same method timed."""
    return [c for c in pairs_of(files) if c.method == c.our_method]


def without_ours(rows: Sequence[OpRow]) -> list[tuple[str, Direction, Workload]]:
    """The cases for which a baseline has a time and ours none by its method."""
    timed = [(row.case, row.times.method, row.is_ours) for row in rows if row.times is not None]
    ours = {(case, method) for case, method, is_ours in timed if is_ours}
    return list(dict.fromkeys(case for case, method, _ in timed if (case, method) not in ours))


def fewest_slots(rows: Sequence[OpRow]) -> list[OpRow]:
    """Of each op's rows at each N, those with the fewest slots measured there."""

    def size(row: OpRow) -> tuple[object, ...]:
        return row.op, row.workload.num_tokens, row.workload.in_dim, row.workload.slot_dim

    fewest: dict[tuple[object, ...], int] = {}
    for row in rows:
        slots = row.workload.num_slots
        fewest[size(row)] = min(fewest.get(size(row), slots), slots)
    return [row for row in rows if row.workload.num_slots == fewest[size(row)]]


def is_prune(row: OpRow | Comparison) -> bool:
    """Whether it is of `prune`, forward."""
    return (row.op, row.direction) == ("prune", "forward")


def prune_file(files: Sequence[Results]) -> Results | None:
    """Of a device's files one with times of our `prune` forward; prune.json is preferred."""
    for suite in ("prune", "ops", "compile"):
        for file in files:
            if file.suite == suite and our_prune(file):
                return file
    return None


def our_prune(file: Results) -> list[OpRow]:
    """Our `prune` forward in a file, at the fewest slots for each N, by graph if possible."""
    rows = [row for row in file.op_rows() if is_prune(row) and row.times is not None]
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
    return row, [c for c in comparisons_of(files) if c.case == row.case]


def share_text(file: Results, row: OpRow) -> str:
    """The share of the measured ceilings, where these were measured."""
    known = file.ceilings.matmul_tflops.keys() & {row.workload.dtype, "float32"}
    share = file.share_of_ceiling(row) if known and row.work.bytes else None
    return "" if share is None else f"{share:.1%}"


def prune_table(files: Sequence[Results]) -> tuple[list[str], str] | None:
    """Sentences about our `prune` and its table; torch.compile may have a file of its own."""
    main = prune_file(files)
    if main is None:
        return None
    ours = our_prune(main)
    said = [
        "`prune`, forward, at the fewest slots measured for each N: time per call, median "
        "(20th to 80th percentile), and each baseline's time over ours."
    ]
    apart = [
        c
        for c in pairs_of(file for file in files if file.suite == "compile" and file is not main)
        if c.baseline == "compile"
    ]
    shown = {row.workload for row in ours}
    columns: dict[str, dict[Workload, str]] = {}
    for c in sorted([*pair(main.op_rows()), *apart], key=_column_order):
        if is_prune(c) and c.workload in shown:
            columns.setdefault(_column(c), {})[c.workload] = ratio_text(c)
    on_gpu = any(row.times and row.times.method in ("graph", "events") for row in ours)
    said += ["Ours and unmarked ratios are by graph."] if on_gpu else []
    said += [APART] if apart else []
    lines = []
    for row in ours:
        assert row.times is not None
        mark = clock_text(row.times.method) if row.times.method == "events" else ""
        ratios = [column.get(row.workload, "none") for column in columns.values()]
        share = [share_text(main, row)] if on_gpu else []
        lines.append([workload_text(row.workload), times_text(row.times) + mark, *ratios, *share])
    header = ["workload", "ours", *columns, *(["of the ceilings"] if on_gpu else [])]
    return said, markdown_table(header, lines)


def _column(c: Comparison) -> str:
    if c.method != c.our_method:
        return f"{c.baseline}{clock_text(c.method)} / ours{clock_text(c.our_method)}"
    return f"{c.baseline} / ours" + (clock_text(c.method) if c.method == "events" else "")


def _column_order(c: Comparison) -> tuple[int, bool]:
    index = VARIANTS.index(c.baseline) if c.baseline in VARIANTS else len(VARIANTS)
    return index, c.method == "events"


def rows_table(file: Results) -> str:
    """Every row of a file of ops, with a ratio where a baseline is compared."""
    ratios = {(*c.case, c.baseline, c.method): ratio_text(c) for c in comparisons_of([file])}

    def cells(row: OpRow) -> list[str]:
        head = [f"{row.op} {row.direction}", row.variant, workload_text(row.workload)]
        if row.times is None:
            return [*head, f"refused: {row.gate.note}", *[""] * (len(ROW_HEADER) - len(head) - 1)]
        note = f": {row.times.note}" if row.times.note else ""
        rates = (row.work.flops / 1e12, row.work.bytes / 1e9)
        return [
            *head,
            times_text(row.times),
            row.times.method + note,
            ratios.get((*row.case, row.variant, row.times.method), ""),
            *(three_digits(rate / row.times.median) if rate else "" for rate in rates),
            share_text(file, row),
        ]

    return markdown_table(ROW_HEADER, map(cells, file.op_rows()))


def losses(files: Sequence[Results]) -> list[str]:
    """Where a baseline takes less than ours, ops, usage and processes alike, worst first."""
    said = [(c.ratio, _op_loss(c)) for c in comparisons_of(files)]
    said += [(row.versus.ratio, _process_loss(row)) for row in rows_of(files, ProcessRow)]
    return [sentence for ratio, sentence in sorted(said) if ratio < 1]


def _op_loss(c: Comparison) -> str:
    return (
        f"{three_digits(1 / c.ratio)}× {c.baseline}'s time: {c.op} {c.direction}, "
        f"{workload_text(c.workload)}{clock_text(c.method)} ({duration(c.ours.median)} against "
        f"{duration(c.theirs.median)}{_unsure(c)})"
    )


def _process_loss(row: ProcessRow) -> str:
    shown, versus = _unit(row), row.versus
    return (
        f"{three_digits(1 / versus.ratio)}× plain PyTorch's: {row.name}, {row.what} "
        f"({shown(versus.ours.median)} against {shown(versus.theirs.median)}{_unsure(versus)})"
    )


def _unsure(versus: Versus) -> str:
    return "; within the spread" if versus.is_within_spread else ""


def _unit(row: ProcessRow) -> Callable[[float], str]:
    return duration if row.unit == "s" else megabytes


def summary(files: Sequence[Results]) -> str:
    """How often we lose, and how much was refused, in a sentence or two."""
    lost = len(losses(files))
    count = len(comparisons_of(files)) + len(rows_of(files, ProcessRow))
    if not count:
        said = "No baseline has a time beside ours."
    elif lost == 0:
        said = f"Nowhere; no baseline is faster in any comparison ({count})."
    else:
        said = f"A baseline is faster in {lost} of {count} comparisons."
    rows = rows_of(files, OpRow)
    refused = sum(row.times is None for row in rows)
    total = len(rows) + len(rows_of(files, ProcessRow))
    return said + (
        f" {refused} of {total} rows were refused by the correctness gate." if refused else ""
    )


def refusals(files: Sequence[Results]) -> list[str]:
    """What did not pass the correctness gate, a line a reason."""
    held: dict[tuple[str, str], list[str]] = {}
    for row in rows_of(files, OpRow):
        if row.times is None:
            key = f"{row.op} {row.direction}, {row.variant}", row.gate.note or "no reason recorded"
            held.setdefault(key, []).append(workload_text(row.workload))
    said = [f"{what}: {why} ({'; '.join(where)})" for (what, why), where in held.items()]
    return said + [
        f"{row.method}, B {row.batch} · {size_text(row.size)}: "
        + (row.gate.note or "no reason recorded")
        for row in rows_of(files, SelectorRow)
        if row.times is None
    ]


def processes_table(rows: Sequence[ProcessRow]) -> str:
    """What new processes take."""

    def cells(row: ProcessRow) -> list[str]:
        pairs = row.versus.ours, row.versus.theirs
        shown = [times_text(t) if row.unit == "s" else megabytes(t.median) for t in pairs]
        return [row.name, row.what, *shown, ratio_text(row.versus)]

    return markdown_table(PROCESS_HEADER, map(cells, rows))


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
    for other in rows:
        if (other.model, other.mode, other.batch) == key and not other.is_pruned:
            return other.times
    return None


def speed_up(row: ModelRow, rows: Sequence[ModelRow]) -> float | None:
    """The unpruned model's TTFT over a row's; None where one of them has no time."""
    whole = unpruned(row, rows)
    if row.times is None or whole is None:
        return None
    return whole.ttft.median / row.times.ttft.median


def model_losses(rows: Sequence[ModelRow]) -> list[str]:
    """Wherever the pruner makes a model slower than it is unpruned, in words; worst first."""
    said: list[tuple[float, str]] = []
    for row in rows:
        whole = unpruned(row, rows)
        if row.selector != "ocvtp" or row.times is None or whole is None:
            continue
        where = f"{row.model}, batch {row.batch}, {row.mode}, {budget_text(row)}"
        ours, theirs = row.times.ttft.median, whole.ttft.median
        times = f"{duration(ours)} against {duration(theirs)}"
        later = f"the first token takes {three_digits(ours / theirs)}× the unpruned model's time"
        said.append((ours / theirs, f"{where}: {later} ({times})"))
        fast, slow = whole.decode_tokens_per_s, row.times.decode_tokens_per_s
        rates = f"{three_digits(slow)} tokens/s against {three_digits(fast)}"
        said.append((fast / slow, f"{where}: decodes {rates}"))
    return [sentence for ratio, sentence in sorted(said, key=lambda p: -p[0]) if ratio > 1]


def model_summary(rows: Sequence[ModelRow]) -> str:
    """How often pruning loses, in a sentence or two."""
    ratios = [r for row in rows if row.selector == "ocvtp" and (r := speed_up(row, rows))]
    if not ratios:
        return "No pruned model has a time beside the unpruned one."
    slower = sum(ratio < 1 for ratio in ratios)
    bare = sum(row.times is None for row in rows)
    said = f"Pruning makes the first token later in {slower} of {len(ratios)} rows."
    return said + (f" {bare} of {len(rows)} rows have no figures." if bare else "")


def budget_text(row: ModelRow) -> str:
    """The budget, or that nothing was pruned."""
    return f"{row.budget} of {row.num_tokens}" if row.is_pruned else f"all {row.num_tokens}"


def model_cells(row: ModelRow, rows: Sequence[ModelRow]) -> list[str]:
    """A row's cells under `MODEL_HEADER`; without figures, the note alone."""
    head = [str(row.batch), row.mode, row.selector, budget_text(row)]
    times = row.times
    if times is None:
        return [*head, *[""] * (len(MODEL_HEADER) - len(head) - 1), row.note]
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


def selectors_table(rows: Sequence[SelectorRow], size: Size) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a size: a line a method, a column or two a batch."""
    mine = {(row.method, row.batch): row for row in rows if row.size == size}
    batches = sorted({batch for _, batch in mine})
    columns = [
        (batch, is_graph)
        for batch in batches
        for is_graph in (False, True)
        if not is_graph or any(row.graph for row in mine.values() if row.batch == batch)
    ]
    heads = [f"B {batch}, graph" if is_graph else f"B {batch}" for batch, is_graph in columns]
    header = ["method", *heads, "coverage", "duplicates", "exactly T", "published / ours", "loop"]
    lines = []
    for method in dict.fromkeys(method for method, _ in mine):
        its = [mine[method, batch] for batch in batches if (method, batch) in mine]
        times = [_time(mine.get((method, batch)), is_graph) for batch, is_graph in columns]
        published = [next(filter(None, found), None) for found in (
            (row.published for row in its), (row.loop for row in its)
        )]  # fmt: skip
        ratios = ["" if one is None else f"{three_digits(one.ratio)}×" for one in published]
        lines.append([method, *times, *_kept(its), *ratios])
    return header, lines


def _time(row: SelectorRow | None, is_graph: bool) -> str:
    if row is None:
        return ""
    if row.times is None:
        return "refused"
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


def selector_losses(rows: Sequence[SelectorRow]) -> list[str]:
    """Where published loops are faster than ours, worst first, in words."""
    lost = [(p.ratio, row, p) for row in rows if (p := row.published) is not None and p.ratio < 1]
    return [
        f"{row.method}, {size_text(row.size)}: {three_digits(1 / ratio)}× the published loops' "
        f"time ({duration(p.ours.median)} against {duration(p.theirs.median)})"
        for ratio, row, p in sorted(lost, key=lambda found: found[0])
    ]


def selector_summary(rows: Sequence[SelectorRow]) -> str:
    """How often the published loops are faster, and how much was refused."""
    compared = sum(row.published is not None for row in rows)
    said = (
        f"Published loops are faster in {len(selector_losses(rows))} of {compared} comparisons."
        if compared
        else "No published loops were timed."
    )
    refused = sum(row.times is None for row in rows)
    return said + (f" {refused} of {len(rows)} rows were refused." if refused else "")


def measured_text(
    results: Mapping[str, Sequence[Results]], gpu: str, batch: int, num_tokens: int, num_slots: int
) -> str:
    """The measured times of our `prune` on a GPU in half precision, for the projections."""
    measured = [
        f"{times_text(row.times)}, {row.workload.dtype}"
        + ("" if row.times.method == "graph" else f", timed by {row.times.method}")
        for files in results.values()
        if (file := prune_file(files)) is not None and gpu in file.device
        for row in graph_first([r for r in file.op_rows() if r.is_ours and is_prune(r)])
        if row.times is not None
        and (row.workload.batch, row.workload.num_tokens) == (batch, num_tokens)
        and row.workload.num_slots == num_slots
        and row.workload.dtype in ("float16", "bfloat16")
    ]
    return "; ".join(measured) or "not measured"
