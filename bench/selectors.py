"""The table of selectors: every method and the OC-pruner on the same tokens at the same budget.

What an encoder gives as a matter of course is given: tokens, keys, CLS attention, importance at two
layers, the text's embedding. A method's time is all that it makes of it, its matrix of cosines
included, up to ids and the kept rows; it is the time of a call over the images in it. On CUDA it is
taken twice, by events, which count the host where that is the slower, and in a CUDA graph. The
published loops are timed on one image, in turns with ours alone, since a call of theirs may take a
hundred of ours: a ratio is of two medians of that one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import cycle
from pathlib import Path

import torch

from bench.ceilings import tensor_bytes
from bench.gate import CheckResult
from bench.results import Beside, Result, SelectorRow
from bench.selectors_gate import Quality, judge, quality
from bench.selectors_inputs import (
    NAMES,
    PUBLISHED,
    Job,
    copy_of,
    draw,
    loops_of,
    plan,
    run_published,
    selector_of,
    tensors_in,
)
from bench.timing import (
    Call,
    StaleReplay,
    Timing,
    copies_for_cold_cache,
    first_line,
    measure,
    release,
)
from ocvtp_kernels.selectors.interface import Selected, Selector, SelectorInputs, run_selector

SEEDS = (11, 71)  # of the gate, before and after the timing; the first is timed
SECONDS = {"cpu": 20.0, "cuda": 2.0}  # of all methods in turns
PUBLISHED_SECONDS = {"cpu": 6.0, "cuda": 1.5}  # of published code in turns with ours
PUBLISHED_ROUNDS = (3, 60)
GRAPH = " in a graph"


@torch.no_grad()
def run(result: Result, folder: Path, device: torch.device, short: bool, deadline: float) -> int:
    """Times every job, saving after each; returns how many selectors were refused."""
    rows: list[SelectorRow] = []
    result.rows = rows
    todo = plan(device.type, short)
    longest, failed = 0.0, 0
    for index, job in enumerate(todo):
        start = time.monotonic()
        # The next job takes about as long as those before, and is not started unless it fits.
        if start + longest > deadline:
            print(f"out of time: the last {len(todo) - index} of {len(todo)} sizes are left out")
            break
        try:
            found = time_job(job, device, deadline)
        except RuntimeError as error:
            print(f"{job} refused: the timing fails: {first_line(error)}", flush=True)
            failed, found = failed + 1, []
        for one in found:
            rows.append(one)
            print(describe(one), flush=True)
        result.save(folder)
        release(device)
        longest = max(longest, time.monotonic() - start)
    return failed + sum(not one.gate.passed for one in rows)


def time_job(job: Job, device: torch.device, deadline: float) -> list[SelectorRow]:
    """A row for each method; the times of those that pass the gate before and after."""
    selectors = {name: selector_of(name, job, device) for name in NAMES}
    verdicts = {
        name: judge(name, selector, job, device, SEEDS[0]) for name, selector in selectors.items()
    }
    inputs = draw(job, SEEDS[0], device)
    passed = [name for name, verdict in verdicts.items() if verdict.passed]
    timings: dict[str, Timing] = {}
    while passed:
        try:
            chosen = {name: selectors[name] for name in passed}
            timings = _measure(chosen, inputs, job.budget, device)
            break
        except StaleReplay as stale:
            name = stale.variant.removesuffix(GRAPH)
            verdicts[name] = CheckResult(False, str(stale))
            passed.remove(name)
        except torch.OutOfMemoryError:
            # Whose fault it was nobody knows: several copies of the inputs are held while timing.
            verdicts |= {name: CheckResult(False, "out of memory") for name in passed}
            passed = []
    beside: dict[str, tuple[Beside, Beside]] = {}
    if job.batch == 1:
        for name in [name for name in PUBLISHED if name in passed]:
            if time.monotonic() > deadline:
                print(f"out of time: the published loops of {name} are left out at {job}")
                continue
            whole = (
                partial(keep, selectors[name], inputs, job.budget),
                partial(run_published, name, inputs, job.budget),
            )
            loops = loops_of(name, inputs, job.budget)
            beside[name] = _beside(*whole, device), _beside(*loops, device)
    for name in passed:
        again = judge(name, selectors[name], job, device, SEEDS[1])
        if not again.passed:
            verdicts[name] = CheckResult(False, f"after the timing, {again.note}")
    return [
        _row(
            name,
            job,
            verdicts[name],
            quality(selector, inputs, job.budget),
            timings,
            beside.get(name, (None, None)),
        )
        for name, selector in selectors.items()
    ]


def keep(selector: Selector, inputs: SelectorInputs, budget: int) -> Selected:
    """What is timed: the selection, and the kept rows ``[B, T, C]``."""
    selected = run_selector(selector, inputs, budget)
    return selected._replace(tokens=selected.gather(inputs.final_tokens))


def _measure(
    selectors: dict[str, Selector], inputs: SelectorInputs, budget: int, device: torch.device
) -> dict[str, Timing]:
    copies = copies_for_cold_cache(tensor_bytes(*tensors_in(inputs).values()), device)
    clones = [copy_of(inputs) for _ in range(copies)]
    calls: dict[str, Call] = {}
    graphs: list[str] = []
    for name, selector in selectors.items():
        runs = [partial(keep, selector, clone, budget) for clone in clones]
        calls[name] = _rotation(runs)
        if device.type == "cuda":
            graphs.append(name + GRAPH)
            calls[graphs[-1]] = _rotation(runs)
    return measure(
        calls,
        device=device,
        calls=copies if device.type == "cuda" else 1,
        capture=graphs,
        seconds=SECONDS[device.type],
    )


def _rotation(runs: Iterable[Callable[[], Selected]]) -> Call:
    """A call that takes the next of several runs each time."""
    following = cycle(runs).__next__
    return lambda: tuple(following()())


def _beside(
    ours: Callable[[], object], published: Callable[[], object], device: torch.device
) -> Beside:
    timings = measure(
        {"ours": ours, "published": published},
        device=device,
        seconds=PUBLISHED_SECONDS[device.type],
        rounds=PUBLISHED_ROUNDS,
    )
    mine, theirs = timings["ours"], timings["published"]
    return Beside(
        theirs.median_s,
        theirs.p20_s,
        theirs.p80_s,
        mine.median_s,
        mine.p20_s,
        mine.p80_s,
        theirs.rounds,
    )


def _row(
    name: str,
    job: Job,
    verdict: CheckResult,
    kept: Quality | None,
    timings: dict[str, Timing],
    beside: tuple[Beside, Beside] | tuple[None, None],
) -> SelectorRow:
    timing, graph = (timings.get(key) if verdict.passed else None for key in (name, name + GRAPH))
    if timing is not None:
        verdict = CheckResult(True, f"{verdict.note}; timed by {timing.method}")
    if graph is not None and graph.method != "graph":
        graph = None
    whole, loop = beside if verdict.passed else (None, None)
    return SelectorRow(
        method=name,
        batch=job.batch,
        num_tokens=job.num_tokens,
        width=job.width,
        budget=job.budget,
        dtype="float32",
        **_per_image("", timing, job.batch),
        rounds=0 if timing is None else timing.rounds,
        **_per_image("graph_", graph, job.batch),
        coverage=None if kept is None else kept.coverage,
        duplicates=None if kept is None else kept.duplicates,
        exact=None if kept is None else kept.exact,
        published=whole,
        loop=loop,
        gate=verdict,
    )


def _per_image(prefix: str, timing: Timing | None, batch: int) -> dict[str, float | None]:
    names = ("median_s", "p20_s", "p80_s")
    return {
        prefix + name: None if timing is None else getattr(timing, name) / batch for name in names
    }


def describe(row: SelectorRow) -> str:
    """A row as a line of the table."""
    head = f"{row.method:12} B={row.batch} N={row.num_tokens} T={row.budget}"
    if row.median_s is None or row.p20_s is None or row.p80_s is None:
        return f"{head} refused: {row.gate.note}"
    said = f"{head}{row.median_s * 1e3:10.3f} ms [{row.p20_s * 1e3:.3f}, {row.p80_s * 1e3:.3f}]"
    if row.graph_median_s is not None:
        said += f", in a graph {row.graph_median_s * 1e3:.3f} ms"
    said += " an image"
    if row.coverage is not None:
        said += f"; coverage {row.coverage:.4f}, {row.duplicates} duplicates"
    if row.published is not None and row.loop is not None:
        said += f"; published {row.published.median_s / row.published.ours_median_s:.1f} times"
        said += f", its loop {row.loop.median_s / row.loop.ours_median_s:.1f} times"
    return f"{said}; {row.gate.note}"
