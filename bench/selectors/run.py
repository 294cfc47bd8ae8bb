"""Times every selector on the same tokens at the same budget, beside published code.

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

from bench.results import CheckResult, Results, SelectorRow, Times, Versus
from bench.selectors.gate import check_selector, quality
from bench.selectors.inputs import (
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
from bench.timing import Call, StaleReplay, copies_for_cold_cache, first_line, measure, release
from ocvtp_kernels.selectors.interface import Selected, Selector, SelectorInputs, run_selector

SEEDS = (11, 71)  # of the gate, before and after the timing; the first is timed
SECONDS = {"cpu": 20.0, "cuda": 2.0}  # of all methods in turns
PUBLISHED_SECONDS = {"cpu": 6.0, "cuda": 1.5}  # of published code in turns with ours
PUBLISHED_ROUNDS = (3, 60)
GRAPH = " in a graph"


@torch.no_grad()
def run(results: Results, folder: Path, device: torch.device, short: bool, deadline: float) -> int:
    """Times every job, saving after each; returns how many selectors were refused."""
    todo = plan(device.type, short)
    longest, refused = 0.0, 0
    for index, job in enumerate(todo):
        start = time.monotonic()
        # The next job takes about as long as those before, and is not started unless it fits.
        if start + longest > deadline:
            print(f"out of time: the last {len(todo) - index} of {len(todo)} sizes are left out")
            break
        try:
            rows = time_job(job, device, deadline)
        except RuntimeError as error:
            print(f"{job} refused: the timing fails: {first_line(error)}", flush=True)
            refused, rows = refused + 1, []
        for row in rows:
            print(describe(row), flush=True)
        results.rows += rows
        refused += sum(not row.gate.passed for row in rows)
        results.save(folder)
        release(device)
        longest = max(longest, time.monotonic() - start)
    return refused


def time_job(job: Job, device: torch.device, deadline: float) -> list[SelectorRow]:
    """A row for each method; the times of those that pass the gate before and after."""
    selectors = {name: selector_of(name, job, device) for name in NAMES}
    checks = {
        name: check_selector(name, selector, job, device, SEEDS[0])
        for name, selector in selectors.items()
    }
    inputs = draw(job, SEEDS[0], device)
    passed = [name for name, check in checks.items() if check.passed]
    times: dict[str, Times] = {}
    while passed:
        try:
            chosen = {name: selectors[name] for name in passed}
            times = _measure(chosen, inputs, job.budget, device)
            break
        except StaleReplay as stale:
            name = stale.variant.removesuffix(GRAPH)
            checks[name] = CheckResult(False, str(stale))
            passed.remove(name)
        except torch.OutOfMemoryError:
            # The failing method is unknown: several copies of the inputs are held while timing.
            checks |= {name: CheckResult(False, "out of memory") for name in passed}
            passed = []
    published: dict[str, Versus] = {}
    loops: dict[str, Versus] = {}
    for name in PUBLISHED if job.batch == 1 else ():
        if name not in passed:
            continue
        if time.monotonic() > deadline:
            print(f"out of time: the published loops of {name} are left out at {job}")
            continue
        published[name] = _versus(
            partial(keep, selectors[name], inputs, job.budget),
            partial(run_published, name, inputs, job.budget),
            device,
        )
        loops[name] = _versus(*loops_of(name, inputs, job.budget), device)
    for name in passed:
        again = check_selector(name, selectors[name], job, device, SEEDS[1])
        if not again.passed:
            checks[name] = CheckResult(False, f"after the timing, {again.note}")
    rows = []
    for name, check in checks.items():
        head = (name, job.batch, job.num_tokens, job.width, job.budget, "float32", check)
        kept = quality(selectors[name], inputs, job.budget)
        if not check.passed:
            rows.append(SelectorRow(*head, None, None, kept, None, None))
            continue
        graph = times.get(name + GRAPH)
        # What could not be captured was timed by events twice.
        replay = graph.over(job.batch) if graph is not None and graph.method == "graph" else None
        eager = times[name].over(job.batch)
        versus = published.get(name), loops.get(name)
        rows.append(SelectorRow(*head, eager, replay, kept, *versus))
    return rows


def keep(selector: Selector, inputs: SelectorInputs, budget: int) -> Selected:
    """What is timed: the selection, and the kept rows ``[B, T, C]``."""
    selected = run_selector(selector, inputs, budget)
    return selected._replace(tokens=selected.gather(inputs.final_tokens))


def _measure(
    selectors: dict[str, Selector], inputs: SelectorInputs, budget: int, device: torch.device
) -> dict[str, Times]:
    num_bytes = sum(tensor.nbytes for tensor in tensors_in(inputs).values())
    copies = copies_for_cold_cache(num_bytes, device)
    clones = [copy_of(inputs) for _ in range(copies)]

    def calls(suffix: str) -> dict[str, Call]:
        return {
            name + suffix: _rotation([partial(keep, selector, clone, budget) for clone in clones])
            for name, selector in selectors.items()
        }

    graphs = calls(GRAPH) if device.type == "cuda" else {}
    return measure(
        {**calls(""), **graphs},
        device=device,
        calls=copies if graphs else 1,
        capture=list(graphs),
        seconds=SECONDS[device.type],
    )


def _rotation(runs: Iterable[Callable[[], Selected]]) -> Call:
    """A call that takes the next of several runs each time."""
    following = cycle(runs).__next__
    return lambda: tuple(following()())


def _versus(ours: Call, published: Call, device: torch.device) -> Versus:
    times = measure(
        {"ours": ours, "published": published},
        device=device,
        seconds=PUBLISHED_SECONDS[device.type],
        rounds=PUBLISHED_ROUNDS,
    )
    return Versus(times["published"], times["ours"])


def describe(row: SelectorRow) -> str:
    """A row as a line of the table."""
    head = f"{row.method:12} B={row.batch} N={row.num_tokens} T={row.budget}"
    if row.times is None:
        return f"{head} refused: {row.gate.note}"
    median, p20, p80 = (each * 1e3 for each in (row.times.median, row.times.p20, row.times.p80))
    said = f"{head}{median:10.3f} ms [{p20:.3f}, {p80:.3f}]"
    if row.graph is not None:
        said += f", in a graph {row.graph.median * 1e3:.3f} ms"
    said += " an image"
    if row.quality is not None:
        said += f"; coverage {row.quality.coverage:.4f}, {row.quality.duplicates} duplicates"
    if row.published is not None and row.loop is not None:
        said += f"; published {row.published.ratio:.1f} times, its loop {row.loop.ratio:.1f} times"
    return f"{said}; {row.gate.note}; timed by {row.times.method}"
