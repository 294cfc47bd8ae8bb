"""The least that each step of `prune` costs, by formula: what counts are held against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from bench.traffic import FLOAT32, INT64, NUM_ITER
from bench.workloads import Workload


class Least(NamedTuple):
    """What a step needs: exact FLOPs, each input read once and each output written once."""

    flops: int
    bytes: int


def step_of(kernel: str, numbers: Mapping[str, Any]) -> str:
    """The step that a launch is: its kernel, and for a Linear what the numbers tell of it."""
    if kernel == "first_kernel":
        return "encode_up+query"
    if kernel != "linear_kernel":
        return kernel.removesuffix("_kernel")
    if numbers["RESIDUAL"]:
        return "ffn_down"
    if numbers["GELU"]:
        return "ffn_up"
    return "encode_down" if numbers["depth"] > numbers["columns"] else "query"


def least_of(load: Workload) -> dict[str, Least]:
    """The least cost of every step; a step that is not here is needed by no formula.

    Of the folded algebra (`ocvtp_kernels.pruner.fold`), all iterations together. Biases count; tile
    padding, recomputed logits, partial sums and softmax statistics do not, nor what is no product:
    LayerNorm and the constant of q'.
    """
    size, again = load.torch_dtype.itemsize, NUM_ITER - 1
    b, n, k, t = load.batch, load.num_tokens, load.num_slots, load.budget
    c, d, h = load.in_dim, load.slot_dim, load.hidden_dim
    rows, hidden, encoded = b * n * c * size, b * n * h * size, b * n * d * size
    narrow, state, per_slot = b * k * d * size, b * k * d * FLOAT32, b * k * FLOAT32
    picks = b * k * INT64

    def weight(inner: int, columns: int) -> int:
        return (inner + 1) * columns * size

    logits = 2 * b * k * n * d
    query_flops = 2 * b * k * d * d
    q = narrow + per_slot  # q' and its constant
    query_bytes = narrow + weight(d, d) + narrow
    # Initial slots come in the tokens' dtype, later ones in float32.
    old_slots = narrow + (again - 1) * state
    gates = 2 * weight(d, 3 * d) + 3 * d * size
    return {
        "encode_up+query": Least(
            2 * b * n * c * h + query_flops,
            rows + weight(c, h) + hidden + query_bytes,
        ),
        "encode_down": Least(2 * b * n * h * d, hidden + weight(h, d) + encoded),
        "slot_attention_fwd": Least(again * 2 * logits, again * (q + encoded + narrow + per_slot)),
        "gru": Least(
            again * 12 * b * k * d * d, again * (narrow + per_slot + gates + state) + old_slots
        ),
        "ffn_up": Least(
            again * 2 * b * k * d * h, again * (narrow + weight(d, h) + b * k * h * size)
        ),
        "ffn_down": Least(
            again * 2 * b * k * d * h, again * (b * k * h * size + weight(h, d) + 2 * state)
        ),
        "query": Least(again * query_flops, again * query_bytes),
        "argmax": Least(logits, q + encoded + picks),
        "resolve": Least(0, picks + b * n * FLOAT32 + 2 * b * t * c * size + b * t * INT64),
    }


def least_total(load: Workload) -> Least:
    """The least cost of `prune`, step by step."""
    return Least(*(sum(values) for values in zip(*least_of(load).values(), strict=True)))
