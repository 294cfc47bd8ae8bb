"""Roofline: FLOPs and minimum bytes of the ops, and the measured ceilings of a device.

FLOPs are those of the matrix products on folded weights (`ocvtp_kernels.pruner.fold`), two for a
multiply-add; bytes are each input read once and each output written once. All variants of an op
have the same work, so what a variant does beyond it lowers its share of the ceilings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.shapes import Workload
from bench.timing import measure

NUM_ITER = 3
HEADS, HEAD_DIM = 16, 64  # of CLIP-L, whose queries and keys `attention_received` reads
INT64, FLOAT32 = 8, 4


@dataclass(frozen=True)
class Work:
    """Matrix FLOPs and the minimum bytes that cross memory."""

    flops: int
    bytes: int

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class Ceilings:
    """Measured rates of the device: copying (read + write) and large matrix products."""

    copy_gb_s: float
    matmul_tflops: dict[str, float] = field(default_factory=dict)

    def roofline_seconds(self, work: Work, dtype: str) -> float:
        """The larger of the times of FLOPs and bytes.

        Products run at the dtype's rate or, where that is higher, at that of float32.
        """
        rates = [
            self.matmul_tflops[name] for name in (dtype, "float32") if name in self.matmul_tflops
        ]
        rate = max(rates)
        return max(work.flops / (rate * 1e12), work.bytes / (self.copy_gb_s * 1e9))


def measure_ceilings(
    device: torch.device, dtypes: tuple[str, ...], short: bool = False
) -> Ceilings:
    """Measures both ceilings, on random data, as zeros run faster."""
    cuda = device.type == "cuda"
    size = (4096 if short else 8192) if cuda else (512 if short else 1024)
    elements = 2 ** (28 if cuda else 24 if short else 26)
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    calls: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    for dtype in dtypes:
        a, b = torch.randn(2, size, size, device=device).to(getattr(torch, dtype))
        calls[dtype] = lambda a=a, b=b: torch.mm(a, b)  # type: ignore[misc]
    # A ceiling is a best case, so it takes the 20th percentile.
    seconds = {
        name: measure({name: call}, device=device, seconds=1.0)[name].p20_s
        for name, call in calls.items()
    }
    copied = 2 * source.numel() * source.element_size()
    return Ceilings(
        copy_gb_s=copied / seconds["copy"] / 1e9,
        matmul_tflops={dtype: 2 * size**3 / seconds[dtype] / 1e12 for dtype in dtypes},
    )


def tensor_bytes(*tensors: Tensor) -> int:
    """Bytes of tensors, read or written once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def stages(load: Workload) -> dict[str, Work]:
    """The work of `prune` by stage; tensors between stages are not counted."""
    size = load.torch_dtype.itemsize
    b, n, k, t = load.batch, load.num_tokens, load.num_slots, load.budget
    c, d, h = load.in_dim, load.slot_dim, load.hidden_dim
    query, compete = 2 * k * d * (d + 1), 2 * k * n * d
    update = compete + 2 * 2 * k * d * 3 * d + 2 * 2 * k * d * h
    encode_weights = c * h + h + h * d + d
    slot_weights = (d + 1) * (d + 1) + 2 * 3 * d * (d + 1) + 3 * d + 2 * d * h + h + d
    return {
        "encode": Work(b * 2 * n * (c * h + h * d), (b * n * c + encode_weights) * size),
        "slots": Work(
            b * (NUM_ITER * (query + compete) + (NUM_ITER - 1) * update),
            (b * k * d + slot_weights) * size,
        ),
        "selection": Work(0, b * n * FLOAT32 + b * t * INT64),
        "gather": Work(0, 2 * b * t * c * size),
    }


def work_of(op: str, load: Workload, direction: str) -> Work:
    """The work of an op of ``torch.ops.ocvtp`` at a workload, ``direction`` forward or backward."""
    size = load.torch_dtype.itemsize
    b, n, k, t = load.batch, load.num_tokens, load.num_slots, load.budget
    c, d, h = load.in_dim, load.slot_dim, load.hidden_dim
    slots, tokens, kept = b * k * d * size, b * n * d * size, b * t * c * size
    importance, ids = b * n * FLOAT32, b * t * INT64
    logits = 2 * b * k * n * d
    gru, ffn = 2 * 2 * b * k * d * 3 * d, 2 * 2 * b * k * d * h
    gru_weights, step_weights = 6 * d * (d + 1) * size, (d * d + 2 * d * h + h + 5 * d) * size
    attend = Work(2 * logits, 2 * slots + 2 * tokens + b * k * size)
    # Recomputed logits, and one product for each of dA, dq, dk and dv.
    attend_back = Work(5 * logits, 4 * slots + 4 * tokens + b * k * size)
    attention = Work(0, b * k * n * size)
    gru_work, gru_back = (
        Work(gru, 3 * slots + gru_weights),
        Work(3 * gru, 5 * slots + 2 * gru_weights),
    )
    pick = Work(logits, slots + tokens)
    gathered = Work(0, 2 * kept + importance + ids)
    scatter = Work(0, kept + b * n * c * size + ids)
    backward = direction == "backward"
    if op == "prune":
        return scatter if backward else sum(stages(load).values(), Work(0, 0))
    if op == "slot_attention_with_attention":
        return (attend_back if backward else attend) + attention
    if op == "slot_attention":
        return attend_back if backward else attend
    if op == "gru_cell":
        return gru_back if backward else gru_work
    if op == "slot_attention_step":
        read = slots + 2 * tokens + gru_weights + step_weights
        # Query and FFN: backward two products for each of the forward's.
        rest = 2 * b * k * d * d + ffn
        if backward:
            return Work(attend_back.flops + gru_back.flops + 2 * rest, 2 * read + slots)
        return Work(attend.flops + gru_work.flops + rest, read + slots)
    if op == "slot_argmax":
        return pick + Work(0, b * k * (INT64 + size))
    if op == "resolve_picks":
        return Work(0, b * k * (INT64 + size) + importance + ids)
    if op == "argmax_gather":
        return scatter if backward else pick + gathered
    if op == "merge":
        # Backward each token has its slot's gradient: rows are copied.
        product = 0 if backward else 2 * b * k * n * c
        return pick + Work(product, b * n * c * size + b * k * c * size + b * k * size)
    if op == "attention_received":
        width = b * HEADS * n * HEAD_DIM
        return Work(2 * width * n, 2 * width * size + importance)
    raise KeyError(op)
