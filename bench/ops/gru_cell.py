"""`gru_cell` beside its reference."""

from __future__ import annotations

import torch

from bench.cases import Case, OpBench, empty, normal
from bench.workloads import Workload
from ocvtp_kernels import ops
from ocvtp_kernels.cost.work import Work


def case(load: Workload, device: torch.device) -> Case:
    gates = 3 * load.slot_dim
    weights = ((gates, load.slot_dim),) * 2 + ((gates,),) * 2
    return Case(
        "gru_cell",
        load,
        device,
        normal(load, load.slots, load.slots, *weights),
        ops.gru_cell,
        ops.gru_cell.reference,
        wrt=tuple(range(6)),
    )


def weight_bytes(load: Workload) -> int:
    """Bytes of both matrices and biases."""
    return 6 * load.slot_dim * (load.slot_dim + 1) * load.torch_dtype.itemsize


def slot_bytes(load: Workload) -> int:
    """Bytes of slots ``[B, K, D]``."""
    return load.batch * load.num_slots * load.slot_dim * load.torch_dtype.itemsize


def flops(load: Workload) -> int:
    return 2 * 2 * load.batch * load.num_slots * load.slot_dim * 3 * load.slot_dim


def work(load: Workload) -> Work:
    return Work(flops(load), 3 * slot_bytes(load) + weight_bytes(load))


def backward_work(load: Workload) -> Work:
    return Work(3 * flops(load), 5 * slot_bytes(load) + 2 * weight_bytes(load))


def launches(load: Workload) -> None:
    from ocvtp_kernels.ops.gru_cell.triton import gru_cell, gru_cell_backward

    slots, dim = empty(load, *load.slots), load.slot_dim
    matrix, bias = empty(load, 3 * dim, dim), empty(load, 3 * dim)
    gru_cell(slots, slots, matrix, matrix, bias, bias)
    gru_cell_backward(slots, slots, matrix, matrix, bias, bias, slots)


BENCHES = {"gru_cell": OpBench(case, work, backward_work, (launches,))}
