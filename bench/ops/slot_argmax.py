"""`slot_argmax` beside its reference."""

from __future__ import annotations

import torch

from bench.cases import Case, OpBench, empty, log_attention, normal
from bench.workloads import Workload
from ocvtp_kernels import ops
from ocvtp_kernels.cost.work import INT64, Work


def case(load: Workload, device: torch.device) -> Case:
    return Case(
        "slot_argmax",
        load,
        device,
        normal(load, load.slots, load.encoded),
        ops.slot_argmax,
        ops.slot_argmax.reference,
        kind="argmax",
        scores=log_attention,
    )


def pick_work(load: Workload) -> Work:
    """Of the logits, which no output holds."""
    b, k, d = load.slots
    read = b * (k + load.num_tokens) * d * load.torch_dtype.itemsize
    return Work(2 * b * k * load.num_tokens * d, read)


def work(load: Workload) -> Work:
    by_slot = INT64 + load.torch_dtype.itemsize
    return pick_work(load) + Work(0, load.batch * load.num_slots * by_slot)


def launches(load: Workload) -> None:
    from ocvtp_kernels.ops.slot_argmax.triton import slot_argmax

    slot_argmax(empty(load, *load.slots), empty(load, *load.encoded))


BENCHES = {"slot_argmax": OpBench(case, work, launchers=(launches,))}
