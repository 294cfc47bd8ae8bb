"""`slot_attention`, with its attention too, and `slot_attention_step` beside their references."""

from __future__ import annotations

from functools import partial

import torch

from bench.cases import Case, OpBench, empty, normal
from bench.ops import gru_cell
from bench.workloads import Workload
from ocvtp_kernels import ops
from ocvtp_kernels.cost.work import Work
from ocvtp_kernels.ops.slot_attention import reference


def case(load: Workload, device: torch.device, name: str = "slot_attention") -> Case:
    scale = load.slot_dim**-0.5
    width = 3 if name.endswith("with_attention") else 2
    return Case(
        name,
        load,
        device,
        normal(load, load.slots, load.encoded, load.encoded),
        lambda q, k, v: getattr(ops, name)(q, k, v, scale),
        lambda q, k, v: ops.slot_attention_with_attention.reference(q, k, v, scale)[:width],
        wrt=(0, 1, 2),
        carries=tuple(range(width)),
    )


def step_case(load: Workload, device: torch.device) -> Case:
    d, h, gates = load.slot_dim, load.hidden_dim, 3 * load.slot_dim
    weights: list[tuple[int, ...]] = [(d,), (d,), (d, d), (gates, d), (gates, d), (gates,)]
    weights += [(gates,), (d,), (d,), (h, d), (h,), (d, h), (d,)]
    scale = d**-0.5
    return Case(
        "slot_attention_step",
        load,
        device,
        normal(load, load.slots, load.encoded, load.encoded, *weights),
        lambda q, k, v, *weights: ops.slot_attention_step(q, k, v, list(weights), scale),
        lambda q, k, v, *weights: reference.slot_attention_step(q, k, v, weights, scale)[0],
        wrt=tuple(range(3 + len(weights))),
    )


def work(load: Workload) -> Work:
    return _work(load, products=2, passes=2)


def backward_work(load: Workload) -> Work:
    """Recomputed logits, and one product for each of dA, dq, dk and dv."""
    return _work(load, products=5, passes=4)


def _work(load: Workload, products: int, passes: int) -> Work:
    """Of so many products of the size of the logits, and so many slots and tokens."""
    b, k, d = load.slots
    rows = passes * (k + load.num_tokens) * d + k
    return Work(products * 2 * b * k * load.num_tokens * d, b * rows * load.torch_dtype.itemsize)


def attention_work(load: Workload) -> Work:
    """Of the attention ``[B, K, N]``, written or read."""
    return Work(0, load.batch * load.num_slots * load.num_tokens * load.torch_dtype.itemsize)


def step_work(load: Workload) -> Work:
    flops = work(load).flops + gru_cell.work(load).flops + _linear_flops(load)
    return Work(flops, _step_bytes(load) + gru_cell.slot_bytes(load))


def step_backward_work(load: Workload) -> Work:
    """Of the Linears, two products for each of the forward pass."""
    flops = backward_work(load).flops + gru_cell.backward_work(load).flops + 2 * _linear_flops(load)
    return Work(flops, 2 * _step_bytes(load) + gru_cell.slot_bytes(load))


def _linear_flops(load: Workload) -> int:
    """Of query and FFN."""
    d = load.slot_dim
    return 2 * load.batch * load.num_slots * (d * d + 2 * d * load.hidden_dim)


def _step_bytes(load: Workload) -> int:
    """Bytes of all inputs of a step."""
    d, h = load.slot_dim, load.hidden_dim
    weights = d * d + 2 * d * h + h + 5 * d
    tokens = 2 * load.batch * load.num_tokens * d
    read = (tokens + weights) * load.torch_dtype.itemsize
    return read + gru_cell.slot_bytes(load) + gru_cell.weight_bytes(load)


def launches(load: Workload) -> None:
    from ocvtp_kernels.ops.slot_attention.triton import forward

    q, k = empty(load, *load.slots), empty(load, *load.encoded)
    mask = empty(load, load.batch, load.num_slots, dtype=torch.bool)
    forward.slot_attention(q, k, k, 1.0)
    forward.slot_attention_with_attention(q, k, k, 1.0, slot_mask=mask)


def backward_launches(load: Workload) -> None:
    from ocvtp_kernels.ops.slot_attention.triton.backward import slot_attention_backward

    q, k = empty(load, *load.slots), empty(load, *load.encoded)
    mass, given = empty(load, *q.shape[:2]), empty(load, *q.shape[:2], load.num_tokens)
    mask = empty(load, load.batch, load.num_slots, dtype=torch.bool)
    slot_attention_backward(q, k, k, 1.0, 1e-5, None, q, q, mass, None, mass)
    slot_attention_backward(q, k, k, 1.0, 1e-5, mask, q, q, mass, given)


BENCHES = {
    "slot_attention": OpBench(case, work, backward_work, (launches, backward_launches)),
    # Its launches are among those of `slot_attention`.
    "slot_attention_with_attention": OpBench(
        partial(case, name="slot_attention_with_attention"),
        lambda load: work(load) + attention_work(load),
        lambda load: backward_work(load) + attention_work(load),
    ),
    # It is made of other ops.
    "slot_attention_step": OpBench(step_case, step_work, step_backward_work),
}
