"""A suite of the bench, run on the CPU by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.results import Ceilings, Results, Suite, Times
from bench.timing import measure

CPU = torch.device("cpu")
Run = Callable[..., int]


def quick(variants: Any, /, **given: Any) -> dict[str, Times]:
    """`bench.timing.measure` in few rounds, as no figure is read."""
    return measure(variants, **{**given, "seconds": 0.0, "rounds": (2, 2)})


def empty_results(suite: Suite) -> Results:
    return Results(suite, "a device", None, Ceilings(10.0, {"float32": 0.1}), {}, "abc")


def run_suite(run: Run, suite: Suite, folder: Path, seconds: float = 600) -> tuple[int, list[Any]]:
    """How many were refused, and the rows of the short list."""
    results = empty_results(suite)
    refused = run(results, folder, CPU, True, time.monotonic() + seconds)
    return refused, results.rows
