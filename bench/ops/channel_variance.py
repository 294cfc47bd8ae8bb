"""`channel_variance` beside its reference."""

from __future__ import annotations

import torch

from bench.cases import Case, OpBench, normal
from bench.workloads import Workload
from ocvtp_kernels import ops
from ocvtp_kernels.cost.work import FLOAT32, Work
from ocvtp_kernels.dtypes import acc_dtype


def case(load: Workload, device: torch.device) -> Case:
    return Case(
        "channel_variance",
        load,
        device,
        normal(load, load.tokens),
        ops.channel_variance,
        lambda tokens: ops.channel_variance.reference(tokens.to(acc_dtype(tokens.dtype))),
    )


def work(load: Workload) -> Work:
    b, n, c = load.tokens
    return Work(0, b * n * c * load.torch_dtype.itemsize + b * c * FLOAT32)


BENCHES = {"channel_variance": OpBench(case, work)}
