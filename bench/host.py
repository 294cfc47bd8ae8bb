"""Host time of a `prune` call, without a GPU: ``python -m bench.host [--output file.json]``.

The driver is stood in for, so what is timed is all else that a call does on the host: finding its
launches, and handing them over. Timed in turns: the launches prepared, the same call without that,
and ``torch.ops.ocvtp.prune``, prepared, with what the op itself does around it. The gate is that
the driver gets the very same arguments. Status 1 where it does not, or where a prepared call takes
longer than is allowed.
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

from bench.cases import CASES
from bench.gate import Verdict
from bench.host_driver import Driver, difference, standing_in
from bench.results import commit, device_name, versions
from bench.shapes import Workload, square
from bench.timing import Timing, measure
from ocvtp_kernels import backends
from ocvtp_kernels.chain_native import prepare
from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.gpu.chips import CHIPS, pretend
from ocvtp_kernels.gpu.launch import interpreting

CHIP = 90
LOAD = square(1, 576, 64, "bfloat16")
ALLOWED_S = 120e-6  # a prepared call
CALLS = 10  # in a sample
ROUNDS = (20, 1000)
Call = Callable[[], Any]


def calls_of(load: Workload) -> tuple[dict[str, Call], list[Tensor]]:
    """The same call in every way, by name, and its tensors."""
    from ocvtp_kernels.chain_triton import prune_triton

    case = CASES["prune"](load, torch.device("cpu"))
    assert case.pruner is not None
    reference, final, slots_init, importance = case.inputs(0)
    weights = prepare(case.pruner.packed())
    arguments = (reference, final, weights, slots_init, importance, load.budget, 1)
    calls: dict[str, Call] = {
        "prepared": lambda: prune_triton(*arguments),
        "ordinary": lambda: prune_triton.__wrapped__(*arguments),
        "op": lambda: torch.ops.ocvtp.prune(*arguments),
    }
    return calls, [reference, final, *weights, slots_init, importance]


def judge(driver: Driver, calls: dict[str, Call], inputs: Sequence[Tensor]) -> dict[str, Verdict]:
    """Whether the driver gets the same of every way as of the ordinary one."""
    expected, outputs = driver.given(calls["ordinary"])
    verdicts = {}
    for name, call in calls.items():
        call()  # the first call of a kind is what it is prepared by
        given, result = driver.given(call)
        if name == "ordinary":
            sentence = "" if len(given) == len(expected) else "it launches otherwise each time"
        else:
            pairs = list(zip(outputs, result, strict=True))
            sentence = difference(expected, given, inputs, pairs)
        verdicts[name] = Verdict(not sentence, sentence or f"{len(given)} launches")
    return verdicts


@torch.no_grad()
def time_calls(load: Workload, seconds: float) -> dict[str, tuple[Verdict, Timing | None]]:
    """Each way's verdict, and its time if it passed."""

    def choose(op: str, *_: Any) -> Any:
        return backends._kernels[op]["triton"].run

    with (
        standing_in(CHIP) as driver,
        pretend(CHIPS[CHIP]),
        mock.patch.object(backends, "choose", choose),
    ):
        calls, inputs = calls_of(load)
        verdicts = judge(driver, calls, inputs)
        passed = {name: call for name, call in calls.items() if verdicts[name].passed}
        timings = measure(passed, calls=CALLS, seconds=seconds, rounds=ROUNDS) if passed else {}
    return {name: (verdict, timings.get(name)) for name, verdict in verdicts.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line each; status 1 if the gate refuses one, or the prepared call takes too long."""
    parser = argparse.ArgumentParser(prog="python -m bench.host", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long")
    parser.add_argument("--output", type=Path, help="a JSON file with the figures")
    given = parser.parse_args(arguments)
    if interpreting():
        parser.error("Triton's interpreter compiles nothing: unset TRITON_INTERPRET")
    torch.set_num_threads(1)
    found = time_calls(LOAD, given.seconds)
    print(f"{LOAD}, sm_{CHIP}, the driver stood in for")
    for name, (verdict, timing) in found.items():
        print(f"{name:9} {describe(timing) if timing else 'refused'}; {verdict.note}")
    if given.output is not None:
        write(given.output, found)
    timing = found["prepared"][1]
    over = timing is not None and timing.median_s > ALLOWED_S
    if over:
        print(f"prepared takes more than the {ALLOWED_S * 1e6:.0f} us allowed")
    return int(over or not all(verdict.passed for verdict, _ in found.values()))


def describe(timing: Timing) -> str:
    """Median and spread of a call."""
    median, p20, p80 = (1e6 * s for s in (timing.median_s, timing.p20_s, timing.p80_s))
    return f"{median:7.1f} us [{p20:.1f}, {p80:.1f}] over {timing.rounds} rounds"


def write(path: Path, found: dict[str, tuple[Verdict, Timing | None]]) -> None:
    """The figures with what they were measured on and with."""
    rows = [
        {"variant": name, "gate": asdict(verdict), "timing": timing and asdict(timing)}
        for name, (verdict, timing) in found.items()
    ]
    top = {
        "kind": "host",
        "device": device_name(torch.device("cpu")),
        "chip": CHIP,
        "workload": asdict(LOAD),
        "versions": versions(),
        "commit": commit(),
        "rows": rows,
    }
    text = json.dumps(top, indent=1, allow_nan=False) + "\n"
    atomic_write(path, text)


if __name__ == "__main__":
    sys.exit(main())
