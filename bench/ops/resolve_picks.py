"""`resolve_picks` beside its reference."""

from __future__ import annotations

import torch

from bench.cases import Case, Inputs, OpBench, empty, empty_scores, importance, normal
from bench.workloads import Workload
from ocvtp_kernels import ops
from ocvtp_kernels.cost.work import FLOAT32, INT64, Work


def case(load: Workload, device: torch.device) -> Case:
    batch, num_slots, _ = load.slots
    peaks, scores = normal(load, (batch, 1, num_slots)), importance(load)

    def draw(generator: torch.Generator) -> Inputs:
        size = (batch, num_slots)
        topk_ids = torch.randint(load.num_tokens, size, generator=generator, device=device)
        return topk_ids, peaks(generator)[0].squeeze(1), *scores(generator)

    return Case(
        "resolve_picks",
        load,
        device,
        draw,
        lambda topk_ids, peak, scores: ops.resolve_picks(topk_ids, peak, scores, load.budget),
        lambda topk_ids, peak, scores: ops.resolve_picks.reference(
            topk_ids, peak, scores, load.budget
        ),
        kind="exact",
    )


def work(load: Workload) -> Work:
    by_slot = load.num_slots * (INT64 + load.torch_dtype.itemsize)
    return Work(0, load.batch * (by_slot + load.num_tokens * FLOAT32 + load.budget * INT64))


def launches(load: Workload) -> None:
    from ocvtp_kernels.ops.resolve_picks.triton import resolve_picks

    topk_ids = empty(load, load.batch, load.num_slots, dtype=torch.int64)
    max_logprob = empty(load, load.batch, load.num_slots)
    resolve_picks(topk_ids, max_logprob, empty_scores(load), load.budget)


BENCHES = {"resolve_picks": OpBench(case, work, launchers=(launches,))}
