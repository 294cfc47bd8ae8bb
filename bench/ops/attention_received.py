"""`attention_received` beside its reference, with the heads of CLIP-L."""

from __future__ import annotations

import torch

from bench.cases import Case, OpBench, empty, normal
from bench.shapes import Workload
from ocvtp_kernels import ops
from ocvtp_kernels.cost.work import FLOAT32, Work

HEADS, HEAD_DIM = 16, 64


def case(load: Workload, device: torch.device) -> Case:
    heads = (load.batch, HEADS, load.num_tokens, HEAD_DIM)
    return Case(
        "attention_received",
        load,
        device,
        normal(load, heads, heads),
        lambda q, k: ops.attention_received(q, k, "meanq"),
        lambda q, k: ops.attention_received.reference(q, k, "meanq"),
    )


def work(load: Workload) -> Work:
    width = load.batch * HEADS * load.num_tokens * HEAD_DIM
    read, written = 2 * width * load.torch_dtype.itemsize, load.batch * load.num_tokens * FLOAT32
    return Work(2 * width * load.num_tokens, read + written)


def launches(load: Workload) -> None:
    from ocvtp_kernels.ops.attention_received.triton import attention_received

    q = empty(load, load.batch, HEADS, load.num_tokens + 1, HEAD_DIM)
    for mode in ("meanq", "cls"):
        attention_received(q, q, mode)


BENCHES = {"attention_received": OpBench(case, work, launchers=(launches,))}
