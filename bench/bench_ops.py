"""pytest-benchmark entries: every op, forward and backward, each behind the gate.

`prune` is limited to a share of the plain module's time.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.gate import check_variant, fresh
from bench.jobs import SEEDS, Job, jobs, time_job
from bench.ops import case_of
from bench.results import OURS
from bench.variants import Variant
from bench.workloads import CPU, HEADLINE, Workloads

# The folded arithmetic is 0.81 of the plain module's.
MAX_SHARE_OF_PLAIN = 0.85
LOADS = Workloads((HEADLINE,), CPU.ops)
CALLS = [(job.op, job.direction) for suite in ("prune", "ops") for job in jobs(suite, LOADS)]


@pytest.mark.parametrize(("op", "direction"), CALLS, ids=["-".join(call) for call in CALLS])
def test_op(benchmark: Any, op: str, direction: str) -> None:
    case = case_of(op, HEADLINE, torch.device("cpu"))
    variant = Variant(op, case.call)
    for seed in SEEDS:
        check = check_variant(case, variant, direction, seed)
        assert check.passed, check.note
    inputs, grads = fresh(case, direction, SEEDS[0])
    run = variant.bind(case, direction, inputs, grads)
    benchmark.extra_info.update(workload=str(HEADLINE), gate=check.note, torch=torch.__version__)
    benchmark.pedantic(run, rounds=5 if case.slow else 20, warmup_rounds=2)


def test_prune_beside_the_plain_module() -> None:
    job = Job("prune", HEADLINE, baselines=("eager",))
    rows, _ = time_job(job, torch.device("cpu"), seconds=10.0)
    assert all(row.gate.passed for row in rows), [row.gate.note for row in rows]
    times = {row.variant: row.taken for row in rows}
    ratio = times[OURS].median / times["eager"].median
    print(f"{ratio:.3f} of the plain module's {times['eager'].median * 1e3:.1f} ms")
    assert ratio <= MAX_SHARE_OF_PLAIN
