"""Host time of a `prune` call, without a GPU: ``python -m bench run --suite host``.

A stand-in replaces the driver, so the time is that of all other host work of a call. Timed
interleaved: prepared launches, the same call without preparation, and ``torch.ops.ocvtp.prune``
(prepared, with the op's own overhead). The gate is that the driver gets the same arguments from all
three. What a prepared call may take is a share of an ordinary one, so that a slow host, or a busy
one, does not decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.host_driver import Driver, difference, standing_in
from bench.modes import threads
from bench.ops import case_of, work_of
from bench.report.tables import rows_table
from bench.results import CheckResult, OpRow, Results, Times
from bench.timing import measure
from bench.workloads import Workload, square
from ocvtp_kernels import backends
from ocvtp_kernels.ops.prune.native.pipeline import prepare
from ocvtp_kernels.triton_common.archs import ARCHS, pretend
from ocvtp_kernels.triton_common.launch import interpreting

ARCH = 90
LOAD = replace(square(1, 576, 64, "bfloat16"), threads=1)
SECONDS = 3.0
ALLOWED = 1 / 6  # a prepared call, of an ordinary one: 120 us on the CPU of the results
CALLS = 10  # in a sample
ROUNDS = (20, 1000)
Call = Callable[..., Any]


def calls_of(load: Workload) -> tuple[dict[str, Call], list[Tensor]]:
    """The same call in each way, by name, and its tensors."""
    from ocvtp_kernels.ops.prune.triton.pipeline import prune

    case = case_of("prune", load, torch.device("cpu"))
    assert case.pruner is not None
    reference_tokens, final_tokens, slots_init, importance = case.inputs(0)
    weights = prepare(case.pruner.packed())
    tokens = reference_tokens, final_tokens
    arguments = (*tokens, weights, slots_init, importance, load.budget, 1)
    plainly: Call = vars(prune)["__wrapped__"]
    calls: dict[str, Call] = {
        "prepared": lambda: prune(*arguments),
        "ordinary": lambda: plainly(*arguments),
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
def time_calls(load: Workload, seconds: float) -> dict[str, tuple[CheckResult, Times | None]]:
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


def run(results: Results, folder: Path, _: torch.device, short: bool, __: float) -> int:
    """Times every call, a variant each; returns how many are refused or too slow.

    The figures are of one thread of the CPU, whatever the device.
    """
    if interpreting():
        raise RuntimeError("Triton's interpreter compiles nothing: unset TRITON_INTERPRET")
    with threads(LOAD.threads):
        found = time_calls(LOAD, 0.5 if short else SECONDS)
    for name, (check, times) in found.items():
        work = work_of("prune", LOAD, "forward")
        results.rows.append(OpRow("prune", name, "forward", LOAD, work, check, times))
    print(f"sm_{ARCH}, without the driver\n{rows_table(results)}")
    results.save(folder)
    prepared, ordinary = found["prepared"][1], found["ordinary"][1]
    over = False
    if prepared is not None and ordinary is not None:
        share = prepared.median / ordinary.median
        over = share > ALLOWED
        print(f"prepared takes {share:.3f} of an ordinary call, allowed are {ALLOWED:.3f}")
    return over + sum(not check.passed for check, _ in found.values())
