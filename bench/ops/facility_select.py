"""`facility_select` beside its reference."""

from __future__ import annotations

import torch

from bench.cases import Case, Inputs, OpBench, empty_matrix, empty_scores, similarity
from bench.ops.dpp_select import work
from bench.workloads import Workload
from ocvtp_kernels import ops

LEVELS = 3  # of saliency: products of so few with the gains are exact in float32


def case(load: Workload, device: torch.device) -> Case:
    matrix = similarity(load)

    def draw(generator: torch.Generator) -> Inputs:
        levels = torch.randint(
            1, LEVELS + 1, load.scores, generator=generator, device=generator.device
        )
        return (*matrix(generator), levels / 4)

    return Case(
        "facility_select",
        load,
        device,
        draw,
        lambda matrix, saliency: ops.facility_select(matrix, saliency, load.budget),
        lambda matrix, saliency: ops.facility_select.reference(matrix, saliency, load.budget),
        kind="exact",
        slow=True,
    )


def launches(load: Workload) -> None:
    from ocvtp_kernels.ops.facility_select.triton import facility_select

    facility_select(empty_matrix(load), empty_scores(load), load.budget)


# Its inputs and outputs are those of `dpp_select`.
BENCHES = {"facility_select": OpBench(case, work, launchers=(launches,))}
