"""`argmax_gather` beside its reference."""

from __future__ import annotations

import torch

from bench.cases import (
    Case,
    OpBench,
    empty,
    empty_scores,
    importance,
    joined,
    log_attention,
    normal,
)
from bench.ops.slot_argmax import pick_work
from bench.workloads import Workload
from ocvtp_kernels import ops
from ocvtp_kernels.cost.work import FLOAT32, INT64, Work


def case(load: Workload, device: torch.device) -> Case:
    return Case(
        "argmax_gather",
        load,
        device,
        joined(normal(load, load.slots, load.encoded, load.tokens), importance(load)),
        lambda q, k, tokens, scores: ops.argmax_gather(q, k, tokens, scores, load.budget),
        lambda q, k, tokens, scores: ops.argmax_gather.reference(q, k, tokens, scores, load.budget),
        kind="kept",
        scores=log_attention,
        wrt=(2,),
    )


def work(load: Workload) -> Work:
    ids = load.batch * (load.num_tokens * FLOAT32 + load.budget * INT64)
    return pick_work(load) + Work(0, 2 * kept_bytes(load) + ids)


def scatter_work(load: Workload) -> Work:
    """Of the gradient: the kept rows, at their ids among all."""
    tokens = load.batch * load.num_tokens * load.in_dim * load.torch_dtype.itemsize
    return Work(0, kept_bytes(load) + tokens + load.batch * load.budget * INT64)


def kept_bytes(load: Workload) -> int:
    """Bytes of the rows kept."""
    return load.batch * load.budget * load.in_dim * load.torch_dtype.itemsize


def launches(load: Workload) -> None:
    from ocvtp_kernels.ops.argmax_gather.triton import argmax_gather

    q, k, tokens = (empty(load, *shape) for shape in (load.slots, load.encoded, load.tokens))
    for top_k, scores in ((1, empty_scores(load)), (2, None)):
        argmax_gather(q, k, tokens, scores, load.budget, top_k=top_k)


BENCHES = {"argmax_gather": OpBench(case, work, scatter_work, (launches,))}
