"""`farthest_select` beside its reference, as DivPrune calls it."""

from __future__ import annotations

import torch

from bench.cases import Case, OpBench, empty, empty_matrix, similarity
from bench.workloads import Workload
from ocvtp_kernels import ops
from ocvtp_kernels.cost.work import FLOAT32, INT64, Work


def case(load: Workload, device: torch.device) -> Case:
    matrix = similarity(load)
    return Case(
        "farthest_select",
        load,
        device,
        lambda generator: (1 - matrix(generator)[0],),
        lambda distances: ops.farthest_select(distances, None, load.budget),
        lambda distances: ops.farthest_select.reference(distances, None, load.budget),
        kind="exact",
        slow=True,
    )


def work(load: Workload) -> Work:
    b, n = load.scores
    return Work(0, b * n * n * FLOAT32 + b * load.budget * INT64)


def launches(load: Workload) -> None:
    from ocvtp_kernels.ops.farthest_select.triton import farthest_select

    distances = empty_matrix(load)
    farthest_select(distances, None, load.budget)
    farthest_select(distances, empty(load, load.batch, dtype=torch.int64), load.budget, False)


BENCHES = {"farthest_select": OpBench(case, work, launchers=(launches,))}
