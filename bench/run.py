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
from itertools import product
from pathlib import Path

import torch

from bench.base import Base
from bench.ceilings import measure_ceilings
from bench.checkout import BuildError
from bench.jobs import Job, jobs, of_op, time_job
from bench.machine import ROOT, default_folder, new_results, read_ceilings
from bench.modes import MODES
from bench.ops import BENCHES, work_of
from bench.report.tables import rows_table
from bench.results import OURS, SUITES, Ceilings, CheckResult, OpRow, ResultError, Results, Suite
from bench.timing import first_line, release, side_stream
from bench.variants import BASELINES
from bench.workloads import BUDGETS, DTYPES, Workloads, workloads

SECONDS = {"cpu": 3.0, "cuda": 0.5}  # of the variants of `prune`; other suites take less
COMPILE_S = 20.0  # time that torch.compile needs; with less left it does not start
# Suites that are not of single ops, and where their ``run`` is.
OTHERS = {
    "host": "bench.host",
    "processes": "bench.processes",
    "attach": "bench.models.attach_overhead",
    "merging": "bench.models.merging",
    "e2e": "bench.models.run",
    "selectors": "bench.selectors.run",
}
# Options of the command line, and the sizes of a workload that they give.
SIZES = {"tokens": "num_tokens", "slots": "num_slots"}
SIZES |= {name: name for name in ("batch", "budget", "dtype", "mode", "threads")}


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
        seconds = SECONDS[device.type] * (1.0 if results.suite in ("prune", "compile") else 0.4)
        if time.monotonic() + (COMPILE_S if "compile" in job.baselines else 0.0) > deadline:
            print(f"out of time: the last {len(todo) - index} of {len(todo)} cases are left out")
            break
        try:
            rows, left_out = time_job(job, device, seconds, base)
        except RuntimeError as error:
            note = f"the timing fails: {type(error).__name__}: {first_line(error)}"
            failed, work = CheckResult(False, note), work_of(job.op, job.workload, job.direction)
            rows = [OpRow(job.op, OURS, job.direction, job.workload, work, failed, None)]
            left_out = []
        results.rows += rows
        refused += sum(not row.gate.passed for row in rows)
        print(rows_table(replace(results, rows=list(rows))), flush=True)
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
    # A CPU multiplies float16 so slowly that float32 is the ceiling.
    dtypes -= {"float16"} if device.type == "cpu" else set()
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
    if name == "cuda" and given.suite == "usage":
        parser.error("--suite usage: is of the CPU; --op takes --mode on a GPU")
    for op, mode in product(given.op, given.mode):
        if mode not in MODES and mode not in BENCHES[op].ways:
            parser.error(f"--mode: {mode} is no way to run {op}")
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
    except (ResultError, BuildError) as error:
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
