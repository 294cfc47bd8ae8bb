"""`pivot_select` beside its reference, as VLM-Pruner calls it."""

from __future__ import annotations

import torch

from bench.cases import Case, OpBench, empty, normal
from bench.workloads import Workload
from ocvtp_kernels import ops
from ocvtp_kernels.cost.work import INT64, Work
from ocvtp_kernels.dtypes import acc_dtype

PIVOTS = 4  # of VLM-Pruner


def case(load: Workload, device: torch.device) -> Case:
    """Points of small integers, whose norms and distances do not round in float32."""
    points = normal(load, load.tokens)
    return Case(
        "pivot_select",
        load,
        device,
        lambda generator: (points(generator)[0].mul_(2).round_(),),
        lambda points: ops.pivot_select(points, PIVOTS),
        lambda points: ops.pivot_select.reference(points.to(acc_dtype(points.dtype)), PIVOTS),
        kind="exact",
        slow=True,
    )


def work(load: Workload) -> Work:
    b, n, c = load.tokens
    return Work(0, b * n * c * load.torch_dtype.itemsize + b * PIVOTS * INT64)


def launches(load: Workload) -> None:
    from ocvtp_kernels.ops.pivot_select.triton import pivot_select

    pivot_select(empty(load, *load.tokens), PIVOTS)


BENCHES = {"pivot_select": OpBench(case, work, launchers=(launches,))}
