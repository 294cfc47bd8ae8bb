"""`mmr_select` beside its reference."""

from __future__ import annotations

import torch

from bench.cases import Case, Inputs, OpBench, empty_matrix, empty_scores, similarity
from bench.ops.dpp_select import work
from bench.workloads import Workload
from ocvtp_kernels import ops

LEVELS = 64  # of relevance: differences of so few with similarities are exact in float32


def case(load: Workload, device: torch.device) -> Case:
    matrix = similarity(load)

    def draw(generator: torch.Generator) -> Inputs:
        levels = torch.randint(LEVELS, load.scores, generator=generator, device=generator.device)
        return (levels / LEVELS, *matrix(generator))

    return Case(
        "mmr_select",
        load,
        device,
        draw,
        lambda relevance, matrix: ops.mmr_select(relevance, matrix, load.budget),
        lambda relevance, matrix: ops.mmr_select.reference(relevance, matrix, load.budget),
        kind="exact",
        slow=True,
    )


def launches(load: Workload) -> None:
    from ocvtp_kernels.ops.mmr_select.triton import mmr_select

    mmr_select(empty_scores(load), empty_matrix(load), load.budget)


# Its inputs and outputs are those of `dpp_select`.
BENCHES = {"mmr_select": OpBench(case, work, launchers=(launches,))}
