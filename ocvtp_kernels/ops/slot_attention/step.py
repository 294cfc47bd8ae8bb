"""One whole iteration of Slot Attention, of the fused ops."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.ops.slot_attention.reference import StepWeights, feed_forward, query

EPS = 1e-5  # added to a slot's mass


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    eps: float = EPS,
    slot_mask: Tensor | None = None,
    need_attention: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Updates ``[B, K, E]`` of ``ocvtp::slot_attention``, and ``[B, K, N]`` if it is needed."""
    arguments = (q, k, v, scale, eps, slot_mask)
    if need_attention:
        updates, _, attention = torch.ops.ocvtp.slot_attention_with_attention(*arguments)
        return updates, attention
    updates, _ = torch.ops.ocvtp.slot_attention(*arguments)
    return updates, None


def gated(updates: Tensor, slots: Tensor, *weights: Tensor) -> Tensor:
    """``ocvtp::gru_cell`` in the dtype of the slots."""
    # Autocast multiplies in half precision, but what is added up over iterations is not.
    state: Tensor = torch.ops.ocvtp.gru_cell(updates, slots, *weights).to(slots.dtype)
    return state


def iterate(
    slots: Tensor,
    k: Tensor,
    v: Tensor,
    weights: StepWeights,
    scale: float,
    eps: float = EPS,
    slot_mask: Tensor | None = None,
    need_attention: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`ocvtp_kernels.ops.slot_attention.reference.slot_attention_step` on the fused ops.

    Returns:
        the new slots ``[B, K, D]``, and the attention ``[B, K, N]`` if it is needed.
    """
    q = query(slots, weights)
    updates, attention = attend(q, k, v, scale, eps, slot_mask, need_attention)
    gru = (weights.w_ih, weights.w_hh, weights.b_ih, weights.b_hh)
    return feed_forward(gated(updates, slots, *gru), weights), attention
