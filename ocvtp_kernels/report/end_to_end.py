"""Whole models: speed-ups over the unpruned model, where pruning loses, and tables as text."""

from __future__ import annotations

from collections.abc import Sequence

from ocvtp_kernels.markdown import markdown_table
from ocvtp_kernels.report.results import STAGES, EndToEndRow, EndToEndTimes
from ocvtp_kernels.report.text import bullets, duration, three_digits, times_text

KEY = ("batch", "mode", "selector", "vision tokens")
HEADER = (
    *KEY, "TTFT", *STAGES, "speed-up", "decode tokens/s", "KV MiB", "pruner adds",
)  # fmt: skip
LEGEND = (
    "TTFT: from pixels and ids on the device to the first token, median (20th to 80th "
    "percentile); its stages are timed apart. Speed-up: the unpruned model's TTFT over this one, "
    "same mode and batch. Static: a static cache, on a GPU with everything in CUDA graphs but what "
    "a note names. The pruner adds: to the encoder, over choosing at random. Weights are random."
)
README_LOSSES = 5
Rows = Sequence[EndToEndRow]


def models_of(rows: Rows) -> dict[str, list[EndToEndRow]]:
    """Each model's rows."""
    models: dict[str, list[EndToEndRow]] = {}
    for row in rows:
        models.setdefault(row.model, []).append(row)
    return models


def unpruned(row: EndToEndRow, rows: Rows) -> EndToEndTimes | None:
    """The unpruned model's times in a row's mode and batch."""
    key = (row.model, row.mode, row.batch)
    for other in rows:
        if (other.model, other.mode, other.batch) == key and not other.is_pruned:
            return other.times
    return None


def speed_up(row: EndToEndRow, rows: Rows) -> float | None:
    """The unpruned model's TTFT over a row's; None where one of them has no time."""
    whole = unpruned(row, rows)
    if row.times is None or whole is None:
        return None
    return whole.ttft.median / row.times.ttft.median


def losses(rows: Rows) -> list[str]:
    """Wherever the pruner makes a model slower than it is unpruned, in words; worst first."""
    said: list[tuple[float, str]] = []
    for row in rows:
        whole = unpruned(row, rows)
        if row.selector != "ocvtp" or row.times is None or whole is None:
            continue
        where = f"{row.model}, batch {row.batch}, {row.mode}, {budget_text(row)}"
        ours, theirs = row.times.ttft.median, whole.ttft.median
        if ours > theirs:
            sentence = (
                f"{where}: the first token takes {three_digits(ours / theirs)}× the unpruned "
                f"model's time ({duration(ours)} against {duration(theirs)})"
            )
            said.append((ours / theirs, sentence))
        fast, slow = whole.decode_tokens_per_s, row.times.decode_tokens_per_s
        if slow < fast:
            sentence = (
                f"{where}: decodes {three_digits(slow)} tokens/s against {three_digits(fast)}"
            )
            said.append((fast / slow, sentence))
    return [sentence for _, sentence in sorted(said, key=lambda pair: -pair[0])]


def summary(rows: Rows) -> str:
    """How often pruning loses, in a sentence or two."""
    pairs = [r for r in rows if r.selector == "ocvtp" and speed_up(r, rows) is not None]
    if not pairs:
        return "No pruned model has a time beside the unpruned one."
    slower = sum((speed_up(row, rows) or 0.0) < 1 for row in pairs)
    bare = sum(row.times is None for row in rows)
    said = f"Pruning makes the first token later in {slower} of {len(pairs)} rows."
    return said + (f" {bare} of {len(rows)} rows have no figures." if bare else "")


def budget_text(row: EndToEndRow) -> str:
    """The budget, or that nothing was pruned."""
    return f"{row.budget} of {row.num_tokens}" if row.is_pruned else f"all {row.num_tokens}"


def cells(row: EndToEndRow, rows: Rows) -> list[str]:
    """A row's cells under `HEADER`; without figures, the note."""
    head = [str(row.batch), row.mode, row.selector, budget_text(row)]
    times = row.times
    if times is None:
        return [*head, row.note, *[""] * (len(HEADER) - len(KEY) - 1)]
    ratio = speed_up(row, rows) if row.is_pruned else None
    return [
        *head,
        times_text(times.ttft),
        *(duration(times.stages[name]) if times.stages[name] else "not run" for name in STAGES),
        "" if ratio is None else f"{three_digits(ratio)}×",
        three_digits(times.decode_tokens_per_s),
        three_digits(times.cache_bytes / 2**20),
        _added_text(times),
    ]


def _added_text(times: EndToEndTimes) -> str:
    added, encoder = times.pruner_added_s, times.stages["encoder"]
    if added is None:
        return ""
    sign = "−" if added < 0 else ""
    share = f", {added / encoder:.1%} of the encoder" if encoder else ""
    return f"{sign}{duration(abs(added))}{share}"


def shortlist(rows: Rows) -> list[EndToEndRow]:
    """The unpruned model and the pruner at the smallest batch."""
    smallest = min((row.batch for row in rows), default=0)
    return [row for row in rows if row.batch == smallest and row.selector != "random"]


def readme(rows: Rows) -> list[str]:
    """What the README says: a table a model at its smallest batch, and where pruning loses."""
    if not rows:
        return ["End to end: the file holds no row."]
    blocks = ["End to end. " + LEGEND]
    for model, mine in models_of(rows).items():
        shown = shortlist(mine)
        blocks += [f"{model}:", markdown_table(HEADER, [cells(row, rows) for row in shown])]
        blocks += [
            f"Note on {row.mode}, {budget_text(row)}: {row.note}."
            for row in shown
            if row.note and row.times is not None
        ]
    blocks.append("Where pruning loses, over all batches: " + summary(rows))
    if lost := losses(rows):
        listed, more = lost[:README_LOSSES], len(lost) - README_LOSSES
        listed += [f"and {more} more, all of them in the report"] if more > 0 else []
        blocks.append(bullets(listed))
    return blocks
