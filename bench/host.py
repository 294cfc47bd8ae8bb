"""Host time of a `prune` call, without a GPU: ``python -m bench.host [--output file.json]``.

A stand-in replaces the driver, so the time is that of all other host work of a call. Timed
interleaved: prepared launches, the same call without preparation, and ``torch.ops.ocvtp.prune``
(prepared, with the op's own overhead). The gate is that the driver gets the same arguments from all
three. Status 1 where it does not, or where a prepared call takes longer than allowed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.gate import CheckResult
from bench.host_driver import Driver, difference, standing_in
from bench.ops import case_of
from bench.results import commit, device_name, versions
from bench.workloads import Workload, square
from bench.timing import Timing, measure
from ocvtp_kernels import backends
from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.ops.prune.native.pipeline import prepare
from ocvtp_kernels.triton_common.archs import ARCHS, pretend
from ocvtp_kernels.triton_common.launch import interpreting

ARCH = 90
LOAD = square(1, 576, 64, "bfloat16")
ALLOWED_S = 120e-6  # a prepared call
CALLS = 10  # in a sample
ROUNDS = (20, 1000)
Call = Callable[[], Any]


def calls_of(load: Workload) -> tuple[dict[str, Call], list[Tensor]]:
    """The same call in each way, by name, and its tensors."""
    from ocvtp_kernels.ops.prune.triton.pipeline import prune

    case = case_of("prune", load, torch.device("cpu"))
    assert case.pruner is not None
    reference_tokens, final_tokens, slots_init, importance = case.inputs(0)
    weights = prepare(case.pruner.packed())
    tokens = reference_tokens, final_tokens
    arguments = (*tokens, weights, slots_init, importance, load.budget, 1)
    calls: dict[str, Call] = {
        "prepared": lambda: prune(*arguments),
        "ordinary": lambda: prune.__wrapped__(*arguments),
        "op": lambda: torch.ops.ocvtp.prune(*arguments),
    }
    return calls, [*tokens, *weights, slots_init, importance]


def check_calls(
    driver: Driver, calls: dict[str, Call], inputs: Sequence[Tensor]
) -> dict[str, CheckResult]:
    """Whether the driver gets the same launches from every call as from the ordinary one."""
    expected, outputs = driver.given(calls["ordinary"])
    checks = {}
    for name, call in calls.items():
        call()  # the first call is recorded and prepares the later ones
        given, result = driver.given(call)
        if name == "ordinary":
            sentence = "" if len(given) == len(expected) else "it launches otherwise each time"
        else:
            pairs = list(zip(outputs, result, strict=True))
            sentence = difference(expected, given, inputs, pairs)
        checks[name] = CheckResult(not sentence, sentence or f"{len(given)} launches")
    return checks


@torch.no_grad()
def time_calls(load: Workload, seconds: float) -> dict[str, tuple[CheckResult, Timing | None]]:
    """Each call's check, and its time if it passed."""

    def choose(op: str, *_: Any) -> Any:
        return backends._kernels[op]["triton"].run

    with (
        standing_in(ARCH) as driver,
        pretend(ARCHS[ARCH]),
        mock.patch.object(backends, "select_kernel", choose),
    ):
        calls, inputs = calls_of(load)
        checks = check_calls(driver, calls, inputs)
        passed = {name: call for name, call in calls.items() if checks[name].passed}
        timings = measure(passed, calls=CALLS, seconds=seconds, rounds=ROUNDS) if passed else {}
    return {name: (check, timings.get(name)) for name, check in checks.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for each call; status 1 if the gate refuses one or the prepared one is slow."""
    parser = argparse.ArgumentParser(prog="python -m bench.host", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long")
    parser.add_argument("--output", type=Path, help="a JSON file with the figures")
    given = parser.parse_args(arguments)
    if interpreting():
        parser.error("Triton's interpreter compiles nothing: unset TRITON_INTERPRET")
    torch.set_num_threads(1)
    found = time_calls(LOAD, given.seconds)
    print(f"{LOAD}, sm_{ARCH}, without the driver")
    for name, (check, timing) in found.items():
        print(f"{name:9} {describe(timing) if timing else 'refused'}; {check.note}")
    if given.output is not None:
        write(given.output, found)
    timing = found["prepared"][1]
    over = timing is not None and timing.median_s > ALLOWED_S
    if over:
        print(f"prepared takes more than the {ALLOWED_S * 1e6:.0f} us allowed")
    return int(over or not all(check.passed for check, _ in found.values()))


def describe(timing: Timing) -> str:
    """Median and spread of a call."""
    median, p20, p80 = (1e6 * s for s in (timing.median_s, timing.p20_s, timing.p80_s))
    return f"{median:7.1f} us [{p20:.1f}, {p80:.1f}] over {timing.rounds} rounds"


def write(path: Path, found: dict[str, tuple[CheckResult, Timing | None]]) -> None:
    """The figures with what they were measured on and with."""
    rows = [
        {"variant": name, "gate": asdict(check), "timing": timing and asdict(timing)}
        for name, (check, timing) in found.items()
    ]
    top = {
        "kind": "host",
        "device": device_name(torch.device("cpu")),
        "chip": ARCH,
        "workload": asdict(LOAD),
        "versions": versions(),
        "commit": commit(),
        "rows": rows,
    }
    atomic_write(path, json.dumps(top, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
