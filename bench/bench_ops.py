"""pytest-benchmark entries: every op, forward and backward, each behind the gate.

`prune` beside the plain module is held to what its arithmetic promises.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.cases import CASES
from bench.gate import fresh, judge
from bench.run import SEEDS, Job, jobs, time_job
from bench.shapes import CPU, HEADLINE, Plan
from bench.variants import Variant

# The folded arithmetic is 0.81 of the plain module's.
MOST_OF_PLAIN = 0.85
PLAN = Plan((HEADLINE,), CPU.ops)
CALLS = [(job.op, job.direction) for kind in ("prune", "micro") for job in jobs(kind, PLAN)]


@pytest.mark.parametrize(("op", "direction"), CALLS, ids=["-".join(call) for call in CALLS])
def test_op(benchmark: Any, op: str, direction: str) -> None:
    case = CASES[op](HEADLINE, torch.device("cpu"))
    variant = Variant(op, case.call)
    for seed in SEEDS:
        verdict = judge(case, variant, direction, seed)
        assert verdict.passed, verdict.note
    inputs, grads = fresh(case, direction, SEEDS[0])
    run = variant.bind(case, direction, inputs, grads)
    benchmark.extra_info.update(workload=str(HEADLINE), gate=verdict.note, torch=torch.__version__)
    benchmark.pedantic(run, rounds=20, warmup_rounds=3)


def test_prune_beside_the_plain_module() -> None:
    found, _ = time_job(Job("prune", HEADLINE), torch.device("cpu"), seconds=20.0)
    timings = {}
    for name, verdict, timing in found:
        assert verdict.passed and timing is not None, f"{name}: {verdict.note}"
        timings[name] = timing
    ratio = timings["prune"].median_s / timings["eager"].median_s
    print(f"{ratio:.3f} of the plain module's {timings['eager'].median_s * 1e3:.1f} ms")
    assert ratio <= MOST_OF_PLAIN
