"""The bench's command: ``python -m bench.run micro|e2e|selectors|ceilings``, and its options.

Ceilings first, then every variant through the gate, then the timings, then the gate once more. A
variant that the gate refuses gets no time, and the command ends with status 1.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path

import torch

from bench import llava, selectors
from bench.cases import CASES, FORWARD_ONLY, Case, Outputs
from bench.gate import Verdict, fresh, judge
from bench.results import Result, Row, default_folder, device_name, driver, row
from bench.shapes import Plan, Workload, plan
from bench.timing import StaleReplay, Timing, copies_for_cold_cache, measure, side_stream
from bench.traffic import Ceilings, measure_ceilings, tensor_bytes, work_of
from bench.variants import Run, Variant, variants_of

SEEDS = (11, 71)  # before and after the timing
FIRST = 12  # workloads of the whole way that come before the single ops

COMPILE_S = 60.0  # what torch.compile may take; with less time left it does not begin

Job = tuple[str, Workload, str, bool]  # op, workload, direction, whether torch.compile is timed


class Rotation:
    """A call that takes the next of several runs each time."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._next = cycle(runs).__next__

    def __call__(self) -> Outputs:
        return self._next()()


def jobs(chosen: Plan) -> Iterator[Job]:
    """What a plan times, in order."""
    ops = [
        (op, load, direction, False)
        for load in chosen.ops
        for op in CASES
        for direction in ("forward", "backward")
        if not (op == "prune" and direction == "forward")
        and not (op in FORWARD_ONLY and direction == "backward")
    ]
    ops += [("slot_attention", load, "forward", False) for load in chosen.narrow]
    whole = [("prune", load, "forward", load in chosen.compiled) for load in chosen.prune]
    yield from (*whole[:FIRST], *ops, *whole[FIRST:])


def time_job(
    job: Job, device: torch.device, seconds: float
) -> tuple[dict[str, tuple[Verdict, Timing | None]], list[str]]:
    """Each variant's verdict and, if it passed both times, its timing; and who is left out."""
    op, load, direction, compiled = job
    case = CASES[op](load, device)
    variants, skipped = variants_of(case, direction, compiled)
    verdicts = {one.name: judge(case, one, direction, SEEDS[0]) for one in variants}
    timings: dict[str, Timing] = {}
    passed = [one for one in variants if verdicts[one.name].passed]
    while passed:
        try:
            timings = _measure(case, passed, direction, seconds)
            break
        except StaleReplay as stale:
            verdicts[stale.variant] = Verdict(False, str(stale))
            passed = [one for one in passed if one.name != stale.variant]
        except torch.OutOfMemoryError:
            # Whose fault it was nobody knows: several copies of the inputs are held while timing.
            verdicts |= {one.name: Verdict(False, "out of memory") for one in passed}
            passed = []
    for one in passed:
        again = judge(case, one, direction, SEEDS[1])
        if not again.passed:
            verdicts[one.name] = Verdict(False, f"after the timing, {again.note}")
    found: dict[str, tuple[Verdict, Timing | None]] = {}
    for name, verdict in verdicts.items():
        timing = timings.get(name)
        if verdict.passed and timing is not None:
            # Events count the host, a graph does not: the row says which it was.
            found[name] = Verdict(True, f"{verdict.note}; timed by {timing.method}"), timing
        else:
            found[name] = verdict, None
    return found, [f"{one.name}: {one.reason}" for one in skipped]


def _measure(
    case: Case, variants: Sequence[Variant], direction: str, seconds: float
) -> dict[str, Timing]:
    inputs, grads = fresh(case, direction, SEEDS[0])
    copies = copies_for_cold_cache(tensor_bytes(*inputs, *grads), case.device)
    sets = [
        (tuple(t.clone() for t in inputs), tuple(t.clone() for t in grads)) for _ in range(copies)
    ]
    calls = {
        one.name: Rotation([one.bind(case, direction, *clones) for clones in sets])
        for one in variants
    }
    return measure(
        calls,
        device=case.device,
        calls=copies if case.device.type == "cuda" else 1,
        capture=[one.name for one in variants if one.capturable],
        seconds=seconds,
    )


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


def micro(result: Result, folder: Path, chosen: Plan, device: torch.device, deadline: float) -> int:
    """Times a plan, saving after every job; returns how many variants were refused."""
    refused = 0
    todo = list(jobs(chosen))
    seconds = 0.5 if device.type == "cuda" else 3.0
    said: set[str] = set()
    rows: list[Row] = []
    result.rows = rows
    for place, job in enumerate(todo):
        if time.monotonic() > deadline:
            print(f"out of time: the last {len(todo) - place} of {len(todo)} cases are left out")
            break
        op, load, direction, compiled = job
        hurry = compiled and deadline - time.monotonic() < COMPILE_S
        found, left_out = time_job(
            (op, load, direction, compiled and not hurry),
            device,
            seconds if op == "prune" else seconds / 3,
        )
        if hurry:
            left_out.append(f"compile: too little time is left at {load}")
        work = work_of(op, load, direction)
        for name, (verdict, timing) in found.items():
            rows.append(row(op, name, direction, load, work, result.ceilings, verdict, timing))
            print(describe(rows[-1]), flush=True)
            refused += not verdict.passed
        for sentence in left_out:
            if sentence not in said:
                print(f"left out: {sentence}")
                said.add(sentence)
        result.save(folder)
        if device.type == "cuda":
            # Graphs keep memory to themselves until they are collected.
            gc.collect()
            torch.cuda.empty_cache()
    return refused


def run(kind: str, device: torch.device, short: bool, folder: Path, seconds: float) -> int:
    """Runs one kind and writes its result file; returns the exit status."""
    deadline = time.monotonic() + seconds
    chosen = plan(device.type, short)
    dtypes = sorted({"float32", *(load.dtype for load in (*chosen.prune, *chosen.ops))})
    with side_stream(device):
        ceilings = measure_ceilings(device, tuple(dtypes), short)
        result = Result(kind, device_name(device), driver(device), ceilings)
        print(f"{result.device}: {describe_ceilings(ceilings)}", flush=True)
        path = result.save(folder)
        todo: dict[str, Callable[[], int]] = {
            "ceilings": lambda: 0,
            "micro": lambda: micro(result, folder, chosen, device, deadline),
            "e2e": lambda: llava.run(result, folder, device, short, deadline),
            "selectors": lambda: selectors.run(result, folder, device, short, deadline),
        }
        refused = todo[kind]()
    print(f"{path}: {len(result.rows)} rows, {refused} refused")
    return 1 if refused else 0


def describe_ceilings(ceilings: Ceilings) -> str:
    """Both ceilings in a line."""
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in ceilings.matmul_tflops.items())
    return f"copies at {ceilings.copy_gb_s:.4g} GB/s, matrix products at {rates} TFLOP/s"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("kind", choices=("micro", "e2e", "selectors", "ceilings"))
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one")
    parser.add_argument("--short", action="store_true", help="the short list")
    parser.add_argument("--output", type=Path, help="folder; bench/results/<device> if not given")
    parser.add_argument(
        "--seconds", type=float, default=3600.0, help="start nothing new after so long"
    )
    given = parser.parse_args(arguments)
    name = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device cuda: torch {torch.__version__} sees no GPU")
    device = torch.device(name)
    folder = given.output or default_folder(device)
    return run(given.kind, device, given.short, folder, given.seconds)


if __name__ == "__main__":
    sys.exit(main())
