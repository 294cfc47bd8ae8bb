"""A first check of a machine: is `prune` right at one image on every backend?

``python -m bench.gpu_check.smoke [--device cuda] [--backends triton,cuda]``: each backend passes
the bench's gate, against float64, and runs in a CUDA graph. Status 0: every available backend is
right; 1: one is wrong; 3: none is right, so that further checks make no sense.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.gate import check_variant
from bench.machine import device_name, driver, versions
from bench.ops import case_of
from bench.timing import StaleReplay, first_line, measure, side_stream
from bench.variants import on_backend
from bench.workloads import BUDGETS, square
from ocvtp_kernels import backends
from ocvtp_kernels.files import atomic_write

DTYPES = ("float32", "bfloat16", "float16")
LOADS = tuple(square(1, n, budgets[0], dtype) for n, budgets in BUDGETS.items() for dtype in DTYPES)
BACKENDS = {"cuda": backends.GPU_KERNELS, "cpu": ("cpu", "reference")}
NONE_RIGHT = 3


def machine(device: torch.device) -> dict[str, Any]:
    """Facts about the device."""
    facts: dict[str, Any] = {"device": device_name(device), "driver": driver(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "chip": f"sm_{properties.major}{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    return {**facts, "versions": versions()}


def check_backend(backend: str, device: torch.device) -> list[dict[str, Any]]:
    """A backend's check at each workload, and a first time."""
    answers: list[dict[str, Any]] = []
    for load in LOADS if device.type == "cuda" else LOADS[:1]:
        case = case_of("prune", load, device)
        variant = on_backend(case, backend, backend)
        check = check_variant(case, variant, "forward", seed=1)
        passed, note, seconds = check.passed, check.note, None
        if passed:
            try:
                call = partial(variant.function, *case.inputs(1))
                times = measure(
                    {backend: call}, device=device, capture=[backend], seconds=0.0, rounds=(3, 3)
                )[backend]
                seconds = times.median
                note += f"; {seconds * 1e6:.1f} us, timed by {times.method}"
                if device.type == "cuda" and times.method != "graph":
                    passed, note = False, f"no CUDA graph: {times.note}"
            except (StaleReplay, RuntimeError) as error:
                passed, note = False, first_line(error)
        answers.append(
            {"backend": backend, "workload": str(load), "right": passed, "note": note}
            | {"seconds": seconds}
        )
        print(f"{backend:9} {load}: {'right' if passed else 'WRONG'}: {note}", flush=True)
    return answers


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check.smoke", description=__doc__)
    parser.add_argument("--device", choices=BACKENDS, default="cuda")
    parser.add_argument("--backends", help="some alone, such as triton,cuda")
    parser.add_argument("--output", type=Path, help="a JSON file of the answers")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    if given.device == "cuda" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no GPU")
        return NONE_RIGHT
    facts = machine(device)
    print(json.dumps(facts), flush=True)
    if given.device == "cuda" and backends.interpreting():
        print(
            "Triton is in its interpreter, where no kernel runs on the GPU: unset TRITON_INTERPRET"
        )
        return NONE_RIGHT
    answers: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    with torch.no_grad(), side_stream(device):
        for backend in given.backends.split(",") if given.backends else BACKENDS[given.device]:
            reason = backends.unsupported_reason("prune", backend, given.device)
            if reason is None:
                answers += check_backend(backend, device)
            else:
                absent[backend] = reason
                print(f"{backend:9} is not here: {reason}", flush=True)
    if given.output is not None:
        top = {**facts, "absent": absent, "answers": answers}
        atomic_write(given.output, json.dumps(top, indent=1) + "\n")
    wrong = {one["backend"] for one in answers if not one["right"]}
    right = {one["backend"] for one in answers} - wrong
    return NONE_RIGHT if not right else 1 if wrong or (given.backends and absent) else 0


if __name__ == "__main__":
    sys.exit(main())
