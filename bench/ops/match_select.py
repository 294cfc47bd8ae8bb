"""`match_select` beside its reference, as VisPruner calls it."""

from __future__ import annotations

import torch

from bench.cases import Case, Inputs, OpBench, empty, empty_matrix, similarity
from bench.workloads import Workload
from ocvtp_kernels import ops
from ocvtp_kernels.cost.work import FLOAT32, INT64, Work


def case(load: Workload, device: torch.device) -> Case:
    """Half of the budget is kept by importance before; the rest goes through the rounds."""
    important, matrix = load.budget // 2, similarity(load)
    budget = load.budget - important

    def draw(generator: torch.Generator) -> Inputs:
        order = torch.rand(load.scores, generator=generator, device=generator.device).argsort(dim=1)
        return (*matrix(generator), order[:, important:].contiguous())

    return Case(
        "match_select",
        load,
        device,
        draw,
        lambda matrix, ranked: ops.match_select(matrix, ranked, budget),
        lambda matrix, ranked: ops.match_select.reference(matrix, ranked, budget),
        kind="exact",
        slow=True,
    )


def work(load: Workload) -> Work:
    b, n = load.scores
    important = load.budget // 2
    ids = n - important + load.budget - important
    return Work(0, b * n * n * FLOAT32 + b * ids * INT64)


def launches(load: Workload) -> None:
    from ocvtp_kernels.ops.match_select.triton import match_select

    ranked = empty(load, load.batch, max(1, load.num_tokens - 7), dtype=torch.int64)
    match_select(empty_matrix(load), ranked, load.budget)


BENCHES = {"match_select": OpBench(case, work, launchers=(launches,))}
