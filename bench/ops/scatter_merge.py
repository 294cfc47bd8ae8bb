"""`scatter_merge` beside its reference."""

from __future__ import annotations

import torch

from bench.cases import Case, Inputs, OpBench, empty, empty_scores, importance, normal
from bench.workloads import Workload
from ocvtp_kernels import ops
from ocvtp_kernels.cost.work import FLOAT32, INT64, Work


def case(load: Workload, device: torch.device) -> Case:
    """Weights of either sign; some tokens are assigned to nothing."""
    tokens, weight = normal(load, load.tokens), importance(load)

    def draw(generator: torch.Generator) -> Inputs:
        assignment = torch.randint(
            -1, load.budget, load.scores, generator=generator, device=generator.device
        )
        return *tokens(generator), assignment, *weight(generator)

    return Case(
        "scatter_merge",
        load,
        device,
        draw,
        lambda tokens, assignment, weight: ops.scatter_merge(
            tokens, assignment, weight, load.budget
        ),
        lambda tokens, assignment, weight: ops.scatter_merge.reference(
            tokens, assignment, weight, load.budget
        ),
        wrt=(0,),
    )


def work(load: Workload) -> Work:
    return backward_work(load) + Work(0, load.batch * load.budget * FLOAT32)


def backward_work(load: Workload) -> Work:
    """Each token has the gradient of what it is assigned to, times its weight."""
    (b, n, c), t = load.tokens, load.budget
    rows = n * c * load.torch_dtype.itemsize + t * c * FLOAT32
    return Work(0, b * (rows + n * (INT64 + FLOAT32)))


def launches(load: Workload) -> None:
    from ocvtp_kernels.ops.scatter_merge.triton import scatter_merge

    assignment = empty(load, *load.scores, dtype=torch.int64)
    scatter_merge(empty(load, *load.tokens), assignment, empty_scores(load), load.budget)


BENCHES = {"scatter_merge": OpBench(case, work, backward_work, (launches,))}
