"""Jobs of a run: an op at a workload, its variants checked, timed interleaved and checked again."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import cycle
from typing import Any, NamedTuple, get_args

import torch

from bench.base import Base
from bench.cases import Case, Inputs
from bench.ceilings import tensor_bytes
from bench.gate import check_variant, fresh, time_gated
from bench.modes import mode_of, threads
from bench.ops import BENCHES, case_of, work_of
from bench.results import OURS, CheckResult, Direction, OpRow, Times
from bench.timing import Call, Sample, copies_for_cold_cache, filler_of_caches, measure, sample_of
from bench.usage import usages
from bench.variants import Variant, variants_of
from bench.workloads import Workload, Workloads

SEEDS = (11, 71)  # before and after the timing
SAMPLE_S = 1e-3  # shortest sample on a CPU
MAX_CALLS = 300  # in a sample
LAUNCHED = " launched"  # suffix of a variant's name where it is timed in a graph too


class Job(NamedTuple):
    """One op at one workload, whose variants are timed interleaved."""

    op: str
    workload: Workload
    direction: Direction = "forward"
    baselines: tuple[str, ...] = ()  # all but torch.compile if none is named


def rotation(runs: Iterable[Callable[[], object]]) -> Call:
    """A call that runs the next of several each time."""
    following = cycle(runs).__next__
    return lambda: following()()


def jobs(suite: str, loads: Workloads, ops: Collection[str] = ()) -> list[Job]:
    """The jobs of a suite of ops, in order; of "ops" those of the ops named, or of all."""
    if suite == "prune":
        return [Job("prune", load) for load in loads.prune]
    if suite == "compile":
        return [Job("prune", load, baselines=("compile",)) for load in loads.compiled]
    if suite == "usage":
        return [Job(*usage, baselines=("eager",)) for usage in usages()]
    if suite != "ops":
        return []
    chosen = ops or BENCHES
    found = [
        job
        for load in loads.ops
        for op in BENCHES
        if op in chosen
        for job in of_op(op, BENCHES[op].usual(load))
        # The forward pass of `prune` has a suite of its own.
        if ops or (job.op, job.direction) != ("prune", "forward")
    ]
    narrow = loads.narrow if "slot_attention" in chosen else ()
    return found + [Job("slot_attention", load) for load in narrow]


def of_op(op: str, load: Workload, baselines: tuple[str, ...] = ()) -> list[Job]:
    """Both directions of an op, as far as it has them and takes the workload."""
    bench, directions = BENCHES[op], get_args(Direction)
    if (
        bench.backward_work is None
        or load.mode in bench.ways
        or not mode_of(load.mode).has_backward
    ):
        directions = directions[:1]
    return [Job(op, load, each, baselines) for each in directions if bench.takes(load)]


def time_job(
    job: Job, device: torch.device, seconds: float, base: Base | None = None
) -> tuple[list[OpRow], list[str]]:
    """A row for each variant, with times if it passes before and after; and those left out.

    A variant that is timed by graph and launched has two rows.
    """
    case = case_of(job.op, job.workload, device)
    with threads(job.workload.threads):
        found, skipped = variants_of(case, job.direction, job.baselines)
        variants = {one.name: one for one in found}

        def check(name: str, after: bool) -> CheckResult:
            if base is None or name != base.name:
                return check_variant(case, variants[name], job.direction, SEEDS[after])
            return base.check() if after else base.begin(job.op, job.workload, job.direction)

        def time_these(names: list[str]) -> dict[str, Times]:
            mine = [variants[name] for name in names if name in variants]
            elsewhere = {base.name: base.sample} if base and base.name in names else {}
            return _measure(case, job, mine, seconds, elsewhere) if mine else {}

        names = [*variants, *([base.name] if base else [])]
        checks, timings = time_gated(names, check, time_these)
    rows: list[OpRow] = []
    work = work_of(job.op, job.workload, job.direction)
    for name, result in checks.items():
        times = [timings[each] for each in (name, name + LAUNCHED) if each in timings]
        if len(times) > 1 and times[0].method == times[1].method:
            del times[1:]  # a variant that could not be captured was launched both times
        head = (job.op, name, job.direction, job.workload, work)
        if not result.passed or not times:
            rows.append(OpRow(*head, CheckResult(False, result.note), None))
        else:
            rows += [OpRow(*head, result, one) for one in times]
    return rows, [f"{one.name}: {one.reason}" for one in skipped]


def _measure(
    case: Case,
    job: Job,
    variants: Sequence[Variant],
    seconds: float,
    elsewhere: dict[str, Sample],
) -> dict[str, Times]:
    clones = clones_of(case, job)
    cuda = case.device.type == "cuda"

    def calls_of(some: Collection[Variant]) -> dict[str, Call]:
        return {
            one.name: rotation([one.bind(case, job.direction, *each) for each in clones])
            for one in some
        }

    captured = [one for one in variants if cuda and one.capturable]
    # `prune` is timed both ways: device time by graph, and launched, with host time.
    again = calls_of(captured if job.op == "prune" and job.direction == "forward" else [])
    calls = calls_of(variants)
    return measure(
        {**calls, **{name + LAUNCHED: call for name, call in again.items()}},
        calls=calls_in_a_sample(case, next(reversed(calls.values())), len(clones)),
        capture=[one.name for one in captured],
        slow=[one.name for one in variants if one.slow],
        seconds=seconds,
        elsewhere=elsewhere,
        **clock_of(case),
    )


def sample_of_ours(case: Case, job: Job) -> Sample:
    """Our variant alone, as `time_job` samples it."""
    clones = clones_of(case, job)
    ours = Variant(OURS, case.call)
    call = rotation([ours.bind(case, job.direction, *each) for each in clones])
    calls = calls_in_a_sample(case, call, len(clones))
    return sample_of(OURS, call, calls=calls, capture=True, **clock_of(case))


def clones_of(case: Case, job: Job) -> list[tuple[Inputs, Inputs]]:
    """Copies of a job's inputs and gradients, more than a GPU's cache holds."""
    inputs, grads = fresh(case, job.direction, SEEDS[0])
    copies = copies_for_cold_cache(tensor_bytes(*inputs, *grads), case.device)
    # torch.compile's CUDA graph is captured for fixed input addresses.
    copies = 1 if "compile" in job.baselines else copies
    return [
        (tuple(t.clone() for t in inputs), tuple(t.clone() for t in grads)) for _ in range(copies)
    ]


def calls_in_a_sample(case: Case, call: Call, copies: int) -> int:
    """One for each copy on a GPU; on a CPU as many as take `SAMPLE_S`."""
    if mode_of(case.workload.mode).fills_caches:
        return 1
    if case.device.type == "cuda":
        return copies
    call()
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    return max(1, min(MAX_CALLS, round(SAMPLE_S / once)))


def clock_of(case: Case) -> dict[str, Any]:
    """How `measure` and `sample_of` clock a case: CPU time of one thread, caches filled before."""
    fills = mode_of(case.workload.mode).fills_caches
    return {
        "device": case.device,
        "cpu_time": case.workload.threads == 1,
        "before": filler_of_caches(case.device) if fills else None,
    }
