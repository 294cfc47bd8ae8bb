"""``python -m bench run``: ops beside their baselines, and every other suite of measurements.

``--op prune,merge`` times ops, forward and backward, at given sizes or the usual ones, and with
``--base REV`` another revision of this package in turns. ``--suite`` names a list of measurements
with a result file of its own. The ceilings are measured first; then every variant passes the
correctness gate, is timed, and passes the gate again. A variant that the gate refuses gets no time,
and the command ends with status 1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from itertools import cycle, product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from bench.base import Base, BaseError
from bench.cases import Case, Inputs
from bench.gate import check_variant, fresh
from bench.machine import ROOT, default_folder, new_results, read_ceilings
from bench.modes import MODES, mode_of, threads
from bench.ops import BENCHES, case_of, work_of
from bench.results import (
    OURS,
    SUITES,
    Ceilings,
    CheckResult,
    Direction,
    OpRow,
    ResultError,
    Results,
    Suite,
    Times,
    Versus,
)
from bench.timing import (
    Call,
    Sample,
    StaleReplay,
    copies_for_cold_cache,
    filler_of_caches,
    first_line,
    measure,
    release,
    sample_of,
    side_stream,
)
from bench.traffic import measure_ceilings, tensor_bytes
from bench.usage import usages
from bench.variants import BASELINES, Run, Variant, variants_of
from bench.workloads import BUDGETS, DTYPES, Workload, Workloads, workloads

SEEDS = (11, 71)  # before and after the timing
SECONDS = {"cpu": 3.0, "cuda": 0.5}  # of the variants of `prune`; other ops take a third
COMPILE_S = 20.0  # time that torch.compile needs; with less left it does not start
SAMPLE_S = 1e-3  # shortest sample on a CPU
MAX_CALLS = 300  # in a sample
# Suites that are not of single ops, and where their ``run`` is.
OTHERS = {
    "host": "bench.host",
    "processes": "bench.processes",
    "e2e": "bench.models.run",
    "selectors": "bench.selectors.run",
}
# Options of the command line, and the sizes of a workload that they give.
SIZES = {
    "batch": "batch",
    "tokens": "num_tokens",
    "slots": "num_slots",
    "budget": "budget",
    "dtype": "dtype",
    "mode": "mode",
    "threads": "threads",
}
LAUNCHED = " launched"  # suffix of a variant's name where it is timed in a graph too


class Job(NamedTuple):
    """One op at one workload, whose variants are timed interleaved."""

    op: str
    workload: Workload
    direction: Direction = "forward"
    baselines: tuple[str, ...] = ()  # all but torch.compile if none is named


class Measured(NamedTuple):
    """A variant's check and times; a variant timed by graph and launched has two of these."""

    variant: str
    check: CheckResult
    times: Times | None = None


def rotation(runs: Sequence[Run]) -> Call:
    """A call that runs the next of several runs each time."""
    following = cycle(runs).__next__
    return lambda: following()()


def jobs(suite: str, loads: Workloads, ops: Collection[str] = ()) -> list[Job]:
    """The jobs of a suite, in order; of "ops" those of the ops named, or of all."""
    if suite in OTHERS or suite == "ceilings":
        return []
    if suite == "prune":
        return [Job("prune", load) for load in loads.prune]
    if suite == "compile":
        return [Job("prune", load, baselines=("compile",)) for load in loads.compiled]
    if suite == "usage":
        return [Job(*usage, baselines=("eager",)) for usage in usages()]
    chosen = ops or BENCHES
    found = [
        job
        for load in loads.ops
        for op in BENCHES
        if op in chosen
        for job in of_op(op, load)
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
) -> tuple[list[Measured], list[str]]:
    """Each variant's check, with times if it passes before and after; and the variants left out."""
    case = case_of(job.op, job.workload, device)
    with threads(job.workload.threads):
        variants, skipped = variants_of(case, job.direction, job.baselines)
        checks = {one.name: check_variant(case, one, job.direction, SEEDS[0]) for one in variants}
        timings: dict[str, list[Times]] = {}
        passed = [one for one in variants if checks[one.name].passed]
        elsewhere: dict[str, Sample] = {}
        if base is not None:
            checks[base.name] = base.begin(job.op, job.workload, job.direction)
            if checks[base.name].passed:
                elsewhere = {base.name: base.sample}
        while passed:
            try:
                timings = _measure(case, job, passed, seconds, elsewhere)
                break
            except StaleReplay as stale:
                checks[stale.variant] = CheckResult(False, str(stale))
                passed = [one for one in passed if one.name != stale.variant]
            except torch.OutOfMemoryError:
                # The failing variant is unknown: several copies of the inputs are held.
                checks |= {one.name: CheckResult(False, "out of memory") for one in passed}
                passed = []
        for one in passed:
            again = check_variant(case, one, job.direction, SEEDS[1])
            if not again.passed:
                checks[one.name] = CheckResult(False, f"after the timing, {again.note}")
        if base is not None and elsewhere and not (again := base.check()).passed:
            checks[base.name] = CheckResult(False, f"after the timing, {again.note}")
    measured: list[Measured] = []
    for name, check in checks.items():
        times = timings.get(name, [])
        if not check.passed or not times:
            measured.append(Measured(name, CheckResult(False, check.note)))
        measured += [Measured(name, _noted(check, one), one) for one in times if check.passed]
    return measured, [f"{one.name}: {one.reason}" for one in skipped]


def _noted(check: CheckResult, times: Times) -> CheckResult:
    """The check with the timing's method: events count host time, a graph does not."""
    why = f", no graph: {times.note}" if times.note else ""
    return CheckResult(True, f"{check.note}; timed by {times.method}{why}")


def _measure(
    case: Case,
    job: Job,
    variants: Sequence[Variant],
    seconds: float,
    elsewhere: dict[str, Sample],
) -> dict[str, list[Times]]:
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
    timings = measure(
        {**calls, **{name + LAUNCHED: call for name, call in again.items()}},
        calls=calls_in_a_sample(case, next(reversed(calls.values())), len(clones)),
        capture=[one.name for one in captured],
        slow=[one.name for one in variants if one.slow],
        seconds=seconds,
        elsewhere=elsewhere,
        **clock_of(case),
    )
    by_variant: dict[str, list[Times]] = {}
    for name in (*calls, *elsewhere):
        timing, launched = timings[name], timings.get(name + LAUNCHED)
        # A variant that could not be captured was launched both times.
        twice = launched is not None and timing.method == launched.method
        by_variant[name] = [timing, *([] if launched is None or twice else [launched])]
    return by_variant


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


def describe(rows: Sequence[OpRow], results: Results) -> list[str]:
    """The rows of a job as lines of a table, with what each takes of our time."""
    ours = {row.times.method: row.times for row in rows if row.is_ours and row.times}
    lines = []
    for row in rows:
        head = f"{row.op:30}{row.direction:9}{row.variant:10} {row.workload!s:46}"
        if row.times is None:
            lines.append(f"{head} refused: {row.gate.note}")
            continue
        times, share = row.times, results.share_of_ceiling(row)
        line = (
            f"{head}{times.median * 1e3:10.3f} ms [{times.p20 * 1e3:.3f}, {times.p80 * 1e3:.3f}] "
            f"{row.work.flops / times.median / 1e12:8.3f} TFLOP/s "
            f"{row.work.bytes / times.median / 1e9:8.2f} GB/s {share:6.1%} of the ceiling"
        )
        if not row.is_ours and times.method in ours:
            versus = Versus(times, ours[times.method])
            line += f", {versus.ratio:.2f}x ours [{versus.low:.2f}, {versus.high:.2f}]"
        lines.append(f"{line}; {row.gate.note}")
    return lines


def time_jobs(
    results: Results,
    folder: Path,
    todo: Sequence[Job],
    device: torch.device,
    deadline: float,
    base: Base | None = None,
) -> int:
    """Times jobs, saving after every one; returns how many variants were refused."""
    refused = 0
    printed: set[str] = set()
    for index, job in enumerate(todo):
        seconds = SECONDS[device.type] * (1.0 if job.op == "prune" else 0.3)
        if time.monotonic() + (COMPILE_S if "compile" in job.baselines else 0.0) > deadline:
            print(f"out of time: the last {len(todo) - index} of {len(todo)} cases are left out")
            break
        try:
            measured, left_out = time_job(job, device, seconds, base)
        except RuntimeError as error:
            note = f"the timing fails: {type(error).__name__}: {first_line(error)}"
            measured, left_out = [Measured(OURS, CheckResult(False, note))], []
        work = work_of(job.op, job.workload, job.direction)
        rows = [
            OpRow(job.op, name, job.direction, job.workload, work, check, times)
            for name, check, times in measured
        ]
        results.rows += rows
        refused += sum(not row.gate.passed for row in rows)
        print(*describe(rows, results), sep="\n", flush=True)
        for sentence in left_out:
            if sentence not in printed:
                print(f"left out: {sentence}", flush=True)
                printed.add(sentence)
        results.save(folder)
        release(device)
    return refused


def run(
    suite: Suite,
    device: torch.device,
    folder: Path,
    *,
    short: bool = False,
    seconds: float = 3600.0,
    todo: Sequence[Job] = (),
    known: Ceilings | None = None,
    commit: str | None = None,
    base: str | None = None,
) -> int:
    """Runs one suite and writes its result file; returns the exit status.

    Args:
        suite: one of `SUITES`.
        device: cpu or cuda.
        folder: of the result file.
        short: the short list of workloads.
        seconds: after these nothing new starts.
        todo: of a suite of ops, these jobs instead of its own.
        known: ceilings measured before on this device; measured now if None.
        commit: recorded in the result file; Git's if None.
        base: a revision of this package that is timed beside ours.
    """
    deadline, refused = time.monotonic() + seconds, 0
    todo = todo or jobs(suite, workloads(device.type, short))
    dtypes = {"float32", *(job.workload.compute_dtype for job in todo)}
    with side_stream(device), ExitStack() as stack:
        ceilings = known or measure_ceilings(device, sorted(dtypes), short)
        results = new_results(suite, device, ceilings, commit)
        print(f"{results.device}: {describe_ceilings(ceilings)}", flush=True)
        path = results.save(folder)
        if suite in OTHERS:
            timed = import_module(OTHERS[suite]).run
            refused = timed(results, folder, device, short, deadline)
        elif suite != "ceilings":
            beside = stack.enter_context(Base(base, device)) if base is not None else None
            refused = time_jobs(results, folder, todo, device, deadline, beside)
    print(f"{path}: {len(results.rows)} rows, {refused} refused")
    return 1 if refused else 0


def describe_ceilings(ceilings: Ceilings) -> str:
    """Both ceilings in a line."""
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in ceilings.matmul_tflops.items())
    return f"copies at {ceilings.copy_gb_s:.4g} GB/s, matrix products at {rates} TFLOP/s"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    name = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device cuda: torch {torch.__version__} sees no GPU")
    if not given.op and given.suite is None:
        parser.error("expected --op or --suite")
    if given.op and given.suite not in (None, "ops"):
        parser.error(f"--op: goes with --suite ops, got {given.suite}")
    alone = ("base", "baselines", *SIZES.values())
    if not given.op and any(getattr(given, name) for name in alone):
        parser.error("--base, --baselines and sizes: go with --op")
    device = torch.device(name)
    # Some ops alone do not take the place of a suite.
    folder = ROOT / "build" / "bench" / name if given.op else default_folder(device)
    try:
        return run(
            given.suite or "ops",
            device,
            given.output or folder,
            short=given.short,
            seconds=given.seconds,
            todo=todo_of(given, workloads(name, given.short)) if given.op else [],
            known=given.ceilings and read_ceilings(given.ceilings, device),
            commit=given.commit,
            base=given.base,
        )
    except (ResultError, BaseError) as error:
        parser.error(str(error))


def todo_of(given: argparse.Namespace, loads: Workloads) -> list[Job]:
    """The jobs of the ops and sizes that the command line names."""
    chosen = {name: value for name in SIZES.values() if (value := getattr(given, name))}
    if not chosen and not given.baselines:
        return jobs("ops", loads, given.op)
    first, names = loads.ops[0], list(chosen)
    found = []
    for values in product(*chosen.values()):
        load = replace(first, **dict(zip(names, values, strict=True)))
        if "num_slots" not in names and "num_tokens" in names:
            load = replace(load, num_slots=BUDGETS.get(load.num_tokens, (load.num_slots,))[0])
        if "budget" not in names:
            load = replace(load, budget=min(load.num_slots, load.num_tokens))
        found.append(load)
    return [job for load in found for op in given.op for job in of_op(op, load, given.baselines)]


def _parser() -> argparse.ArgumentParser:
    def names_of(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
        def parse(text: str) -> tuple[str, ...]:
            names = tuple(text.split(","))
            if unknown := sorted(set(names) - set(known)):
                raise argparse.ArgumentTypeError(
                    f"expected some of {', '.join(known)}, got {', '.join(unknown)}"
                )
            return names

        return parse

    def numbers(text: str) -> tuple[int, ...]:
        if not all(part.isdigit() and int(part) for part in text.split(",")):
            raise argparse.ArgumentTypeError(f"expected numbers such as 1,8, got {text!r}")
        return tuple(map(int, text.split(",")))

    modes = dict.fromkeys([*MODES, *(way for bench in BENCHES.values() for way in bench.ways)])
    parser = argparse.ArgumentParser(
        prog="python -m bench run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--op", type=names_of(BENCHES), default=(), metavar="OPS")
    parser.add_argument("--suite", choices=SUITES)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one")
    parser.add_argument(
        "--baselines",
        type=names_of(BASELINES),
        default=(),
        help=f"of --op: some of {', '.join(BASELINES)}; all but compile if not given",
    )
    parser.add_argument("--base", metavar="REV", help="of --op: another revision, built beside")
    sizes = parser.add_argument_group("sizes of --op, each one or several: --batch 1,8")
    types = {"dtype": names_of(DTYPES), "mode": names_of(modes)}
    for option, name in SIZES.items():
        kind = types.get(name, numbers)
        said = ", ".join(modes) if name == "mode" else None
        sizes.add_argument(f"--{option}", dest=name, type=kind, default=(), help=said)
    parser.add_argument("--short", action="store_true", help="the short list")
    parser.add_argument("--output", type=Path, help="folder; bench/results/<device> of a suite")
    parser.add_argument(
        "--seconds", type=float, default=3600.0, help="start nothing new after so long"
    )
    parser.add_argument("--ceilings", type=Path, help="a result file that has this device's")
    parser.add_argument("--commit", help="what is run, where there is no Git to ask")
    return parser
