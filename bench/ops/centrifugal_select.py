"""`centrifugal_select` beside its reference, which takes one image after the other."""

from __future__ import annotations

import torch

from bench.cases import Case, Inputs, OpBench, empty, empty_matrix, similarity
from bench.workloads import Workload
from ocvtp_kernels import ops
from ocvtp_kernels.cost.work import FLOAT32, INT64, Work

PIVOTS = 4  # of VLM-Pruner
MAX_TOKENS = 576


def case(load: Workload, device: torch.device) -> Case:
    """On the squarest grid, without the weight of the distance, so that no rounding decides."""
    height, width = grid(load.num_tokens)
    matrix = similarity(load)

    def draw(generator: torch.Generator) -> Inputs:
        order = torch.rand(load.scores, generator=generator, device=generator.device).argsort(dim=1)
        return (*matrix(generator), order[:, :PIVOTS].contiguous())

    return Case(
        "centrifugal_select",
        load,
        device,
        draw,
        lambda matrix, pivots: ops.centrifugal_select(
            matrix, pivots, height, width, load.budget, spread=0.0
        ),
        lambda matrix, pivots: ops.centrifugal_select.reference(
            matrix, pivots, height, width, load.budget, spread=0.0
        ),
        kind="exact",
        slow=True,
    )


def grid(num_tokens: int) -> tuple[int, int]:
    """Height and width, as near to each other as can be."""
    height = next(h for h in range(int(num_tokens**0.5), 0, -1) if num_tokens % h == 0)
    return height, num_tokens // height


def work(load: Workload) -> Work:
    b, n = load.scores
    written = b * (load.budget + 1 + n) * INT64 + b * n * FLOAT32
    return Work(0, b * n * n * FLOAT32 + b * PIVOTS * INT64 + written)


def launches(load: Workload) -> None:
    from ocvtp_kernels.ops.centrifugal_select.triton import centrifugal_select

    pivots = empty(load, load.batch, PIVOTS, dtype=torch.int64)
    for pad in (True, False):
        centrifugal_select(
            empty_matrix(load), pivots, 24, load.num_tokens // 24, load.budget, pad=pad
        )


BENCHES = {"centrifugal_select": OpBench(case, work, launchers=(launches,), max_tokens=MAX_TOKENS)}
