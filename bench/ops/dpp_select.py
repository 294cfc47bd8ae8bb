"""`dpp_select` beside its reference."""

from __future__ import annotations

import torch

from bench.cases import Case, Inputs, OpBench, empty_matrix, empty_scores
from bench.workloads import Workload
from ocvtp_kernels import ops
from ocvtp_kernels.cost.work import FLOAT32, INT64, Work

ALIKE = 0.5  # cosine of a token with the one that it is like
RATIO = 0.99  # of each quality to the next higher


def case(load: Workload, device: torch.device) -> Case:
    """Tokens alike in pairs, of qualities that no pick brings close to one another.

    A pick leaves its like ``1 - ALIKE^2`` of its variance, and the others all of theirs. So any two
    variances differ by more than half a percent, and no rounding decides.
    """

    def draw(generator: torch.Generator) -> Inputs:
        device = generator.device
        rank, place = (
            torch.rand(load.scores, generator=generator, device=device).argsort(dim=1)
            for _ in range(2)
        )
        pair = place // 2
        alike = (pair[:, :, None] == pair[:, None]).float()
        own = torch.eye(load.num_tokens, device=device)
        return ALIKE * alike + (1 - ALIKE) * own, RATIO ** rank.float()

    return Case(
        "dpp_select",
        load,
        device,
        draw,
        lambda matrix, quality: ops.dpp_select(matrix, quality, load.budget),
        lambda matrix, quality: ops.dpp_select.reference(matrix, quality, load.budget),
        kind="exact",
        slow=True,
    )


def work(load: Workload) -> Work:
    b, n = load.scores
    return Work(0, b * (n + 1) * n * FLOAT32 + b * load.budget * INT64)


def launches(load: Workload) -> None:
    from ocvtp_kernels.ops.dpp_select.triton import dpp_select

    dpp_select(empty_matrix(load), empty_scores(load), load.budget)


BENCHES = {"dpp_select": OpBench(case, work, launchers=(launches,))}
