"""`attention_received` beside its reference, with the heads of CLIP-L."""

from __future__ import annotations

import torch

from bench.cases import Case, OpBench, normal
from bench.workloads import Workload
from ocvtp_kernels import ops
from ocvtp_kernels.cost.work import FLOAT32, Work

HEADS, HEAD_DIM = 16, 64
# Ways to call it: whether of CLS alone, and heads and their width.
WAYS = {
    "cls": (True, HEADS, HEAD_DIM),
    "one_head": (False, 1, 1024),
    "cls_one_head": (True, 1, 1024),
}


def case(load: Workload, device: torch.device) -> Case:
    is_cls, heads, dim = WAYS.get(load.mode, (False, HEADS, HEAD_DIM))
    mode, shape = "cls" if is_cls else "meanq", (load.batch, heads, load.num_tokens, dim)
    return Case(
        "attention_received",
        load,
        device,
        normal(load, shape, shape),
        lambda q, k: ops.attention_received(q, k, mode),
        lambda q, k: ops.attention_received.reference(q, k, mode),
    )


def work(load: Workload) -> Work:
    """Of CLS alone, one query; what it receives itself is left out of the output."""
    is_cls, heads, dim = WAYS.get(load.mode, (False, HEADS, HEAD_DIM))
    queries = 1 if is_cls else load.num_tokens
    width = load.batch * heads * dim
    read = (queries + load.num_tokens) * width * load.torch_dtype.itemsize
    written = load.batch * (load.num_tokens - is_cls) * FLOAT32
    return Work(2 * width * queries * load.num_tokens, read + written)


BENCHES = {"attention_received": OpBench(case, work, ways=dict.fromkeys(WAYS, case))}
