"""The bench's command: ``python -m bench.run prune|compile|micro|settings|e2e|selectors|ceilings``.

"prune" is `prune` beside every baseline but torch.compile, "compile" `prune` beside that, "micro"
the other ops, "settings" ways to use the CPU. The ceilings are measured first; then every variant
passes the correctness gate, is timed, and passes the gate again. A variant that the gate refuses
gets no time, and the command ends with status 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Collection, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import torch

from bench import llava, selectors, settings
from bench.cases import Case, Outputs
from bench.ceilings import Ceilings, measure_ceilings, tensor_bytes
from bench.gate import CheckResult, check_variant, fresh
from bench.ops import BENCHES, case_of, work_of
from bench.results import Result, Row, default_folder, device_name, driver, read_ceilings, row
from bench.shapes import Workload, Workloads, workloads
from bench.timing import (
    StaleReplay,
    Timing,
    copies_for_cold_cache,
    first_line,
    measure,
    release,
    side_stream,
)
from bench.variants import Run, Variant, variants_of

SEEDS = (11, 71)  # before and after the timing
KINDS = ("prune", "compile", "micro", "settings", "e2e", "selectors", "ceilings")
COMPILE_S = 20.0  # time that torch.compile needs; with less left it does not start


class Job(NamedTuple):
    """One op at one workload, whose variants are timed interleaved."""

    op: str
    workload: Workload
    direction: str = "forward"
    compiled: bool = False  # ours beside torch.compile, instead of every other baseline


class Measured(NamedTuple):
    """A variant's check and time; a variant timed by graph and launched has two of these."""

    variant: str
    check: CheckResult
    timing: Timing | None = None


LAUNCHED = " launched"  # suffix of a variant's name where it is timed in a graph too


class Rotation:
    """A call that runs the next of several runs each time."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._next = cycle(runs).__next__

    def __call__(self) -> Outputs:
        return self._next()()


def jobs(kind: str, loads: Workloads, ops: Collection[str] = ()) -> list[Job]:
    """The jobs of a kind, in order; of "micro" those of the ops named, by default of the usual."""
    if kind == "prune":
        return [Job("prune", load) for load in loads.prune]
    if kind == "compile":
        return [Job("prune", load, compiled=True) for load in loads.compiled]
    ops = ops or [op for op, bench in BENCHES.items() if bench.by_default]
    found = [
        Job(op, load, direction)
        for load in loads.ops
        for op, bench in BENCHES.items()
        for direction in ("forward", "backward")
        if op in ops
        and bench.takes(load)
        and not (op == "prune" and direction == "forward")
        and not (bench.backward_work is None and direction == "backward")
    ]
    narrow = loads.narrow if "slot_attention" in ops else ()
    return found + [Job("slot_attention", load) for load in narrow]


def time_job(job: Job, device: torch.device, seconds: float) -> tuple[list[Measured], list[str]]:
    """Each variant's check, with times if it passes before and after; and the variants left out."""
    case = case_of(job.op, job.workload, device)
    variants, skipped = variants_of(case, job.direction, job.compiled)
    checks = {one.name: check_variant(case, one, job.direction, SEEDS[0]) for one in variants}
    timings: dict[str, list[Timing]] = {}
    passed = [one for one in variants if checks[one.name].passed]
    while passed:
        try:
            timings = _measure(case, job, passed, seconds)
            break
        except StaleReplay as stale:
            checks[stale.variant] = CheckResult(False, str(stale))
            passed = [one for one in passed if one.name != stale.variant]
        except torch.OutOfMemoryError:
            # The failing variant is unknown: several copies of the inputs are held while timing.
            checks |= {one.name: CheckResult(False, "out of memory") for one in passed}
            passed = []
    for one in passed:
        again = check_variant(case, one, job.direction, SEEDS[1])
        if not again.passed:
            checks[one.name] = CheckResult(False, f"after the timing, {again.note}")
    measured: list[Measured] = []
    for name, check in checks.items():
        if not check.passed:
            measured.append(Measured(name, check))
        else:
            measured += [Measured(name, _noted(check, timing), timing) for timing in timings[name]]
    return measured, [f"{one.name}: {one.reason}" for one in skipped]


def _noted(check: CheckResult, timing: Timing) -> CheckResult:
    """The check with the timing's method: events count host time, a graph does not."""
    why = f", no graph: {timing.note}" if timing.note else ""
    return CheckResult(True, f"{check.note}; timed by {timing.method}{why}")


def _measure(
    case: Case, job: Job, variants: Sequence[Variant], seconds: float
) -> dict[str, list[Timing]]:
    inputs, grads = fresh(case, job.direction, SEEDS[0])
    cuda = case.device.type == "cuda"
    # torch.compile's CUDA graph is captured for fixed input addresses.
    copies = copies_for_cold_cache(tensor_bytes(*inputs, *grads), case.device)
    copies = 1 if job.compiled else copies
    sets = [
        (tuple(t.clone() for t in inputs), tuple(t.clone() for t in grads)) for _ in range(copies)
    ]

    def calls_of(some: Collection[Variant]) -> dict[str, Rotation]:
        return {
            one.name: Rotation([one.bind(case, job.direction, *clones) for clones in sets])
            for one in some
        }

    captured = [one for one in variants if cuda and one.capturable]
    # `prune` is timed both ways: device time by graph, and launched, with host time.
    again = calls_of(captured if job.op == "prune" and job.direction == "forward" else [])
    timings = measure(
        {**calls_of(variants), **{name + LAUNCHED: call for name, call in again.items()}},
        device=case.device,
        calls=copies if cuda else 1,
        capture=[one.name for one in captured],
        slow=[one.name for one in variants if one.slow],
        seconds=seconds,
    )
    by_variant: dict[str, list[Timing]] = {}
    for one in variants:
        timing, launched = timings[one.name], timings.get(one.name + LAUNCHED)
        # A variant that could not be captured was launched both times.
        twice = launched is not None and timing.method == launched.method
        by_variant[one.name] = [timing, *([] if launched is None or twice else [launched])]
    return by_variant


def describe(one: Row) -> str:
    """A row as a line of the table."""
    load = Workload(**one.workload)
    head = f"{one.op:30}{one.direction:9}{one.variant:10} {load!s:46}"
    if one.median_s is None:
        return f"{head} refused: {one.gate.note}"
    assert one.p20_s is not None and one.p80_s is not None and one.tflops is not None
    assert one.gb_s is not None and one.share_of_ceiling is not None
    return (
        f"{head}{one.median_s * 1e3:10.3f} ms [{one.p20_s * 1e3:.3f}, {one.p80_s * 1e3:.3f}] "
        f"{one.tflops:8.3f} TFLOP/s {one.gb_s:8.2f} GB/s {one.share_of_ceiling:6.1%} "
        f"of the ceiling; {one.gate.note}"
    )


def time_jobs(
    result: Result, folder: Path, todo: Sequence[Job], device: torch.device, deadline: float
) -> int:
    """Times jobs, saving after every one; returns how many variants were refused."""
    refused = 0
    seconds = 0.5 if device.type == "cuda" else 3.0
    printed: set[str] = set()
    rows: list[Row] = []
    result.rows = rows
    for index, job in enumerate(todo):
        if time.monotonic() + (COMPILE_S if job.compiled else 0.0) > deadline:
            print(f"out of time: the last {len(todo) - index} of {len(todo)} cases are left out")
            break
        try:
            measured, left_out = time_job(
                job, device, seconds if job.op == "prune" else seconds / 3
            )
        except RuntimeError as error:
            measured = [Measured("prune" if job.op == "prune" else "ocvtp", _failed(error))]
            left_out = []
        work = work_of(job.op, job.workload, job.direction)
        for name, check, timing in measured:
            head = (job.op, name, job.direction, job.workload)
            rows.append(row(*head, work, result.ceilings, check, timing))
            print(describe(rows[-1]), flush=True)
            refused += not check.passed
        for sentence in left_out:
            if sentence not in printed:
                print(f"left out: {sentence}", flush=True)
                printed.add(sentence)
        result.save(folder)
        release(device)
    return refused


def _failed(error: RuntimeError) -> CheckResult:
    return CheckResult(False, f"the timing fails: {type(error).__name__}: {first_line(error)}")


def run(
    kind: str,
    device: torch.device,
    short: bool,
    folder: Path,
    seconds: float,
    ops: Collection[str] = (),
    known: Ceilings | None = None,
    commit: str | None = None,
) -> int:
    """Runs one kind and writes its result file; returns the exit status.

    Args:
        kind: one of `KINDS`.
        device: cpu or cuda.
        short: the short list of workloads.
        folder: of the result file.
        seconds: after these nothing new starts.
        ops: of "micro", these alone; if empty, those that are timed by default.
        known: ceilings measured before on this device; measured now if None.
        commit: recorded in the result file; Git's if None.
    """
    deadline = time.monotonic() + seconds
    loads = workloads(device.type, short)
    dtypes = sorted({"float32", *(load.dtype for load in (*loads.prune, *loads.ops))})
    with side_stream(device):
        ceilings = known or measure_ceilings(device, tuple(dtypes), short)
        result = Result(kind, device_name(device), driver(device), ceilings)
        result.commit = commit or result.commit
        print(f"{result.device}: {describe_ceilings(ceilings)}", flush=True)
        path = result.save(folder)
        todo = [job for job in jobs(kind, loads, ops) if not ops or job.op in ops]
        kinds: dict[str, Callable[[], int]] = {
            "ceilings": lambda: 0,
            "e2e": lambda: llava.run(result, folder, device, short, deadline),
            "selectors": lambda: selectors.run(result, folder, device, short, deadline),
            "settings": lambda: settings.run(result, folder, short, deadline),
        }
        timed = kinds.get(kind, lambda: time_jobs(result, folder, todo, device, deadline))
        refused = timed()
    print(f"{path}: {len(result.rows)} rows, {refused} refused")
    return 1 if refused else 0


def describe_ceilings(ceilings: Ceilings) -> str:
    """Both ceilings in a line."""
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in ceilings.matmul_tflops.items())
    return f"copies at {ceilings.copy_gb_s:.4g} GB/s, matrix products at {rates} TFLOP/s"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one")
    parser.add_argument("--short", action="store_true", help="the short list")
    parser.add_argument("--output", type=Path, help="folder; bench/results/<device> if not given")
    parser.add_argument(
        "--seconds", type=float, default=3600.0, help="start nothing new after so long"
    )
    named = [op for op, bench in BENCHES.items() if not bench.by_default]
    parser.add_argument(
        *("--op", "--ops"),
        dest="ops",
        default="",
        metavar="OPS",
        help="of micro, some ops alone, such as merge,gru_cell: the result file has no others then "
        "(see --output). These are timed only if named: " + ", ".join(named),
    )
    parser.add_argument("--ceilings", type=Path, help="a result file that has this device's")
    parser.add_argument("--commit", help="what is run, where there is no Git to ask")
    given = parser.parse_args(arguments)
    ops = [op for op in given.ops.split(",") if op]
    if unknown := sorted(set(ops) - set(BENCHES)):
        parser.error(f"--op: expected some of {', '.join(BENCHES)}, got {', '.join(unknown)}")
    name = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device cuda: torch {torch.__version__} sees no GPU")
    device = torch.device(name)
    folder = given.output or default_folder(device)
    known = None
    if given.ceilings is not None:
        try:
            known = read_ceilings(given.ceilings, device_name(device))
        except ValueError as error:
            parser.error(f"--ceilings: {error}")
    return run(given.kind, device, given.short, folder, given.seconds, ops, known, given.commit)


if __name__ == "__main__":
    sys.exit(main())
