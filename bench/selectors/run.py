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
from functools import partial
from pathlib import Path

import torch

from bench.gate import time_gated
from bench.jobs import LAUNCHED, SEEDS, rotation
from bench.report.tables import selectors_table
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
from bench.timing import Call, copies_for_cold_cache, first_line, measure, release
from ocvtp_kernels.selectors.interface import Selected, Selector, SelectorInputs, run_selector

SECONDS = {"cpu": 8.0, "cuda": 2.0}  # of all methods in turns
PUBLISHED_SECONDS = {"cpu": 3.0, "cuda": 1.5}  # of published code in turns with ours
PUBLISHED_ROUNDS = (3, 60)


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
        if rows:
            wrong = [f"{r.method} refused: {r.gate.note}" for r in rows if r.times is None]
            print(selectors_table(rows), *wrong, sep="\n", flush=True)
        results.rows += rows
        refused += sum(not row.gate.passed for row in rows)
        results.save(folder)
        release(device)
        longest = max(longest, time.monotonic() - start)
    return refused


def time_job(job: Job, device: torch.device, deadline: float) -> list[SelectorRow]:
    """A row for each method; the times of those that pass the gate before and after."""
    selectors = {name: selector_of(name, job, device) for name in NAMES}
    inputs = draw(job, SEEDS[0], device)
    versus: dict[str, tuple[Versus, Versus]] = {}  # published code and its loop beside ours

    def check(name: str, after: bool) -> CheckResult:
        return check_selector(name, selectors[name], job, device, SEEDS[after])

    def time_these(names: list[str]) -> dict[str, Times]:
        times = _measure({name: selectors[name] for name in names}, inputs, job.budget, device)
        for name in PUBLISHED if job.batch == 1 else ():
            if name in names and time.monotonic() > deadline:
                print(f"out of time: the published loops of {name} are left out at {job}")
            elif name in names:
                ours = partial(keep, selectors[name], inputs, job.budget)
                theirs = partial(run_published, name, inputs, job.budget)
                loops = loops_of(name, inputs, job.budget)
                versus[name] = _versus(ours, theirs, device), _versus(*loops, device)
        return times

    checks, times = time_gated(NAMES, check, time_these)
    rows = []
    for name, result in checks.items():
        head = (name, job.batch, job.num_tokens, job.width, job.budget, "float32", result)
        kept = quality(selectors[name], inputs, job.budget)
        if not result.passed:
            rows.append(SelectorRow(*head, None, None, kept, None, None))
            continue
        graph = times[name].over(job.batch)
        eager = times.get(name + LAUNCHED, times[name]).over(job.batch)
        # What could not be captured was timed by events twice.
        replay = graph if graph.method == "graph" else None
        rows.append(SelectorRow(*head, eager, replay, kept, *versus.get(name, (None, None))))
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

    cuda = device.type == "cuda"
    calls = {
        name + suffix: rotation([partial(keep, selector, clone, budget) for clone in clones])
        for suffix in ("", *([LAUNCHED] if cuda else []))
        for name, selector in selectors.items()
    }
    return measure(
        calls,
        device=device,
        calls=copies if cuda else 1,
        capture=list(selectors),
        seconds=SECONDS[device.type],
    )


def _versus(ours: Call, published: Call, device: torch.device) -> Versus:
    times = measure(
        {"ours": ours, "published": published},
        device=device,
        seconds=PUBLISHED_SECONDS[device.type],
        rounds=PUBLISHED_ROUNDS,
    )
    return Versus(times["published"], times["ours"])
