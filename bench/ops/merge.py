"""`merge` beside its reference."""

from __future__ import annotations

import torch

from bench.cases import Case, OpBench, empty, normal
from bench.ops.slot_argmax import pick_work
from bench.workloads import Workload
from ocvtp_kernels import ops
from ocvtp_kernels.cost.work import Work


def case(load: Workload, device: torch.device) -> Case:
    return Case(
        "merge",
        load,
        device,
        normal(load, load.slots, load.encoded, load.tokens),
        ops.merge,
        ops.merge.reference,
        wrt=(2,),
    )


def work(load: Workload) -> Work:
    """Forward, tokens are added up by slot; backward, each has its slot's gradient."""
    (b, n, c), k = load.tokens, load.num_slots
    return pick_work(load) + Work(0, b * (n * c + k * c + k) * load.torch_dtype.itemsize)


def launches(load: Workload) -> None:
    from ocvtp_kernels.ops.merge.triton import merge

    merge(empty(load, *load.slots), empty(load, *load.encoded), empty(load, *load.tokens))


BENCHES = {"merge": OpBench(case, work, work, (launches,))}
