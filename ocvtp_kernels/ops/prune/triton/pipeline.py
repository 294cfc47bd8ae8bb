"""The whole pipeline on Triton kernels: what ``ocvtp::prune`` runs on a GPU of sm_80 or newer.

A fixed list of launches on the current stream, none of which waits for the host: 20 with two encode
Linears, three iterations and at most 128 slots.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ocvtp_kernels.ops.argmax_gather.triton import select
from ocvtp_kernels.ops.gru_cell.triton import gru
from ocvtp_kernels.ops.prune.reference import MASS_EPS
from ocvtp_kernels.ops.prune.triton.encode import encode
from ocvtp_kernels.ops.prune.triton.workspace import Workspace, new_workspace
from ocvtp_kernels.ops.prune.weights import Folded, unpack
from ocvtp_kernels.ops.slot_argmax.triton import topk_of
from ocvtp_kernels.ops.slot_attention.triton.forward import (
    SlotAttentionArgs,
    SplitPlan,
    slot_attention_fwd,
    split_plan,
)
from ocvtp_kernels.triton_common.launch import unit_stride
from ocvtp_kernels.triton_common.layer_norm import LayerNorm, layer_norm
from ocvtp_kernels.triton_common.linear import Linear, linear
from ocvtp_kernels.triton_common.prepared import prepared


@prepared
def prune(
    reference_tokens: Tensor,
    final_tokens: Tensor,
    weights: Sequence[Tensor],
    slots_init: Tensor,
    importance: Tensor | None,
    budget: int,
    top_k: int = 1,
) -> tuple[Tensor, Tensor]:
    """Sums and slots are float32."""
    args, softmax_stats = _last_iteration(reference_tokens, weights, slots_init)
    return select(args, final_tokens, importance, budget, top_k, softmax_stats)


@prepared
def prune_picks(
    reference_tokens: Tensor, weights: Sequence[Tensor], slots_init: Tensor, top_k: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums and slots are float32."""
    args, softmax_stats = _last_iteration(reference_tokens, weights, slots_init)
    return topk_of(args, top_k, softmax_stats)


def _last_iteration(
    reference_tokens: Tensor, weights: Sequence[Tensor], slots_init: Tensor
) -> tuple[SlotAttentionArgs, Tensor | None]:
    """The slot attention of the last iteration, not yet run, and memory for its softmax_stats."""
    folded = unpack([weight.contiguous() for weight in weights])
    tokens, slots = unit_stride(reference_tokens), unit_stride(slots_init)
    split = split_plan(slots, tokens.shape[1], slots.shape[2])
    space = new_workspace(tokens, slots, folded, split)
    norm, query = query_of(slots, folded, space)
    x = encode(tokens, folded, norm, query, space)
    args = SlotAttentionArgs(space.q, x, constant=space.constant)
    h = slots
    for _ in range(folded.num_iter - 1):
        _update_slots(args, slots, h, folded, space, split)
        slots, h = space.slots, space.h
        norm, query = query_of(slots, folded, space)
        layer_norm(norm if h is slots else norm._replace(copy=h))
        linear(query)
    return args, space.split.softmax_stats


def query_of(slots: Tensor, folded: Folded, space: Workspace) -> tuple[LayerNorm, Linear]:
    """The LayerNorm of these slots, with the constant of their logits, and the query from it."""
    weights = folded.slots
    constant = (weights.constant_weight, weights.constant_bias, space.constant)
    return (
        LayerNorm(slots, space.normed_slots, extra_column=constant),
        Linear(space.normed_slots, weights.query_weight, weights.query_bias, space.q),
    )


def _update_slots(
    args: SlotAttentionArgs,
    slots: Tensor,
    h: Tensor,
    folded: Folded,
    space: Workspace,
    split: SplitPlan,
) -> None:
    """One iteration after its query: slot attention, GRU and FFN, into ``space.slots``."""
    weights = folded.slots
    slot_attention_fwd(args, args.k, MASS_EPS, space.updates, space.mass, split, space.split)
    gates = weights.gates_weight, weights.hidden_weight, weights.gates_bias, weights.hidden_bias
    gru(space.updates, h, gates, space.state, weights.gates_shift, space.mass, MASS_EPS, slots)
    layer_norm(LayerNorm(space.state, space.normed_slots))
    ffn_up = Linear(space.normed_slots, weights.ffn_w1, weights.ffn_b1, space.hidden, gelu=True)
    linear(ffn_up)
    linear(Linear(space.hidden, weights.ffn_w2, weights.ffn_b2, space.slots, residual=space.state))
