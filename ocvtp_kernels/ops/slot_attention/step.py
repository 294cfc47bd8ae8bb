"""One whole iteration of Slot Attention, of the fused ops."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.ops.slot_attention.reference import StepWeights, feed_forward, query

EPS = 1e-5  # added to a slot's mass


def iterate(
    slots: Tensor,
    k: Tensor,
    v: Tensor,
    weights: StepWeights,
    scale: float,
    eps: float = EPS,
    slot_mask: Tensor | None = None,
    dropout: float = 0.0,
    need_attention: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`ocvtp_kernels.ops.slot_attention.reference.slot_attention_step` on the fused ops.

    Returns:
        the new slots ``[B, K, D]``, and the attention ``[B, K, N]`` if it is needed.
    """
    arguments = (query(slots, weights), k, v, scale, eps, slot_mask)
    attention = None
    if need_attention:
        updates, _, attention = torch.ops.ocvtp.slot_attention_with_attention(*arguments)
    else:
        updates, _ = torch.ops.ocvtp.slot_attention(*arguments)
    gru = (weights.w_ih, weights.w_hh, weights.b_ih, weights.b_hh)
    # Autocast multiplies in half precision, but what is added up over iterations is not.
    state = torch.ops.ocvtp.gru_cell(updates, slots, *gru).to(slots.dtype)
    return feed_forward(state, weights, dropout), attention
