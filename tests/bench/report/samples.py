"""Results of devices that do not exist."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bench import results as records
from bench.results import OURS, CheckResult, Method, OpRow, Results, Row, Suite, Times, Versus
from bench.workloads import HEADLINE
from ocvtp_kernels.cost.work import Work

DEVICE, GPU = "Imaginary accelerator", "Imaginary H100"
PASSED, REFUSED = CheckResult(True, "ids exact"), CheckResult(False, "wrong | ids")


def times(median: float, method: Method = "host") -> Times:
    return Times(median, 0.9 * median, 1.1 * median, 7, method)


def versus(theirs: float, ours: float) -> Versus:
    return Versus(times(theirs), times(ours))


def op_row(
    op: str, variant: str, median: float | None, method: Method = "host", **load: Any
) -> OpRow:
    """A forward pass whose work takes 1 ms at the ceilings' rates; None for a median: refused."""
    taken = None if median is None else times(median, method)
    gate = REFUSED if taken is None else PASSED
    load = {"budget": load["num_slots"]} | load if "num_slots" in load else load
    work = Work(5 * 10**9, 4 * 10**7)
    return OpRow(op, variant, "forward", replace(HEADLINE, **load), work, gate, taken)


def results(suite: Suite, rows: list[Any], device: str = DEVICE) -> Results:
    ceilings = records.Ceilings(100.0, {"float32": 5.0, "bfloat16": 10.0})
    versions = {"torch": "0.0", "triton": None}
    commit, date = "0123456789abcdef-dirty", "2001-02-03T04:05:06+00:00"
    return Results(suite, device, None, ceilings, versions, commit, date, rows)


def model_row(selector: Any, budget: int, ttft: float | None, **changes: Any) -> records.ModelRow:
    taken = None
    if ttft is not None:
        stages, cache = dict.fromkeys(records.STAGES, ttft / 5), 2**20 * budget // 64
        rate, added = changes.pop("rate", 40.0), changes.pop("added", None)
        taken = records.ModelTimes(times(ttft), stages, rate, cache, added)
    note = "" if taken else "out of memory"
    row = records.ModelRow("imaginary", "eager", selector, 1, budget, 576, taken, note)
    return replace(row, **changes)


def model_rows() -> list[Row]:
    """Pruning wins by 5 at batch 1 and loses by 2 at batch 8, where static mode has no memory."""
    return [
        model_row("unpruned", 576, 0.5),
        model_row("ocvtp", 64, 0.1, added=-1e-3),
        model_row("random", 64, 0.09),
        model_row("ocvtp", 64, 0.1, mode="static", note="no graph"),
        model_row("unpruned", 576, 0.5, batch=8),
        model_row("ocvtp", 64, 1.0, batch=8, rate=30.0),
        model_row("unpruned", 576, None, batch=8, mode="static"),
        model_row("ocvtp", 64, 0.2, batch=8, mode="static"),
    ]


def selector_row(
    method: str, batch: int, median: float | None, **changes: Any
) -> records.SelectorRow:
    taken, quality = median and times(median), records.Quality(0.5 + batch / 1000, 0, True)
    given: list[Any] = [PASSED if taken else REFUSED, taken, None, quality, None, None]
    row = records.SelectorRow(method, batch, 576, 1024, 64, "float32", *given)
    return replace(row, **changes)


def selector_rows() -> list[Row]:
    """Published loops lose by 200 and win by 2; one method keeps a token twice in a large batch."""
    graph, twice = times(1e-4, "graph"), records.Quality(0.5, 3, False)
    return [
        selector_row("oc-pruner", 1, 2e-3, published=versus(0.4, 2e-3), graph=graph),
        selector_row("divprune", 1, 1e-3, published=versus(1e-3, 2e-3), loop=versus(4e-3, 1e-4)),
        selector_row("oc-pruner", 64, 5e-4),
        selector_row("divprune", 64, None, quality=twice),
        selector_row("oc-pruner", 1, 3e-3, budget=192),
    ]


def cpu() -> list[Results]:
    """Ours wins by 3 over eager, in autocast and in time to import; loses by 2 to compile, on one
    thread and in memory, and by a hair to published."""
    prune = [
        op_row("prune", variant, median * batch, batch=batch)
        for batch in (1, 8)
        for variant, median in ((OURS, 2e-3), ("eager", 6e-3))
    ]
    prune += [op_row("prune", "compile", 1e-3), op_row("prune", "published", 1.9e-3)]
    prune.append(op_row("prune", OURS, 3e-3, num_tokens=2880, num_slots=160))
    usage = [
        op_row("prune", "eager", 4e-3, mode="autocast"),
        op_row("prune", OURS, 2e-3, mode="autocast"),
        op_row("merge", "eager", 1e-3, "cpu", threads=1),
        op_row("merge", OURS, 2e-3, "cpu", threads=1),
    ]
    processes = [
        records.ProcessRow("a new process", "import", "s", versus(2.0, 1.0)),
        records.ProcessRow("many sizes", "memory", "bytes", versus(3e6, 6e6)),
    ]
    rows: dict[Suite, list[Any]] = {
        "prune": prune,
        "ops": [op_row("gru_cell", OURS, None), op_row("gru_cell", "eager", 1e-3)],
        "usage": usage,
        "host": [op_row("prune", "op", 6e-5), op_row("prune", "prepared", 5e-5)],
        "processes": processes,
        "e2e": model_rows(),
        "selectors": selector_rows(),
    }
    return [results(suite, its) for suite, its in rows.items()]


def gpu_rows() -> list[OpRow]:
    """Ours wins by graph and loses to eager when launched; csrc was refused at batch 8."""
    timed: tuple[tuple[str, Method, float], ...] = (
        ("eager", "graph", 4e-4), ("eager", "events", 8e-4), ("published", "events", 5e-3),
        (OURS, "graph", 1e-4), (OURS, "events", 1e-3), ("csrc", "graph", 3e-4),
    )  # fmt: skip
    rows = [
        op_row("prune", variant, median * batch, method, batch=batch, dtype="bfloat16")
        for batch in (1, 8)
        for variant, method, median in timed
    ]
    return [*rows[:-1], op_row("prune", "csrc", None, batch=8, dtype="bfloat16")]


def gpu(*methods: Method) -> list[Results]:
    """`prune`, beside torch.compile (ours timed by ``methods``), and single ops."""
    beside = [op_row("prune", "compile", 1e-3, "events", dtype="bfloat16")]
    beside += [op_row("prune", OURS, 5e-4, method, dtype="bfloat16") for method in methods]
    single = [
        op_row("gru_cell", OURS, 1e-4, "graph"),
        op_row("gru_cell", "eager", 2e-4, "graph"),
        op_row("slot_attention", OURS, 1e-4, "graph"),
        op_row("slot_attention", "flashslice", 5e-5, "events"),
    ]
    rows: dict[Suite, list[Any]] = {"prune": gpu_rows(), "compile": beside, "ops": single}
    return [results(suite, its, GPU) for suite, its in rows.items()]
