"""Slot Attention in plain PyTorch: what its oracles are made of.

Source: Locatello et al., "Object-Centric Learning with Slot Attention" (2020), in the form of
arXiv 2511.20439: softmax over slots, eps in the denominator of the weighted mean, GRU, then a
pre-norm residual FFN. All functions take any floating dtype and compute in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ocvtp_kernels.ops.gru_cell import gru_cell

LN_EPS = 1e-5


class StepWeights(NamedTuple):
    """The weights of one iteration, in the order ``ocvtp::slot_attention_step`` takes them."""

    norm_q_weight: Tensor  # [D]     gamma of norm_slots_0
    norm_q_bias: Tensor  # [D]     beta of norm_slots_0
    w_q: Tensor  # [D, D]  proj_q
    w_ih: Tensor  # [3D, D] GRU, input gates (reset, update, new)
    w_hh: Tensor  # [3D, D] GRU, hidden gates
    b_ih: Tensor  # [3D]
    b_hh: Tensor  # [3D]
    norm_ffn_weight: Tensor  # [D]     gamma of norm_slots_1
    norm_ffn_bias: Tensor  # [D]     beta of norm_slots_1
    ffn_w1: Tensor  # [F, D]
    ffn_b1: Tensor  # [F]
    ffn_w2: Tensor  # [D, F]
    ffn_b2: Tensor  # [D]


def slot_logits(
    q: Tensor, k: Tensor, scale: float | None, slot_mask: Tensor | None = None
) -> Tensor:
    """``scale * q k^T`` with masked slots at -inf: [B, K, D], [B, N, D] -> [B, K, N].

    ``scale`` None is D^-0.5; ``slot_mask`` is bool ``[B, K]``, True for a live slot.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = torch.matmul(q, k.transpose(-1, -2)) * scale
    if slot_mask is not None:
        logits = logits.masked_fill(~slot_mask.unsqueeze(-1), -math.inf)
    return logits


def log_attention(logits: Tensor) -> Tensor:
    """``log A``, the log-softmax over slots of logits ``[B, K, N]``, resolved where A is near 1.

    With m the largest logit of a token, ``log A = (x - m) - log1p(sum of exp(x - m) over the
    other slots)``. Orders tokens as the attention does; A itself rounds to 1, and all such tokens
    tie, once a slot leads by 17 in float32.
    """
    top, leader = logits.max(dim=1, keepdim=True)
    shifted = logits - top
    others = shifted.exp().scatter(1, leader, 0.0).sum(dim=1, keepdim=True)
    return shifted - others.log1p()


def weighted_mean(attention: Tensor, v: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``(A / (sum_n A + eps)) v`` ``[B, K, E]`` and the mass ``sum_n A`` ``[B, K]``."""
    mass = attention.sum(dim=-1)
    return torch.matmul(attention / (mass + eps).unsqueeze(-1), v), mass


def query(slots: Tensor, weights: StepWeights) -> Tensor:
    """``norm_slots_0(slots) Wq^T``: [B, K, D] -> [B, K, D]."""
    normed = F.layer_norm(
        slots, slots.shape[-1:], weights.norm_q_weight, weights.norm_q_bias, LN_EPS
    )
    return F.linear(normed, weights.w_q)


def feed_forward(slots: Tensor, weights: StepWeights) -> Tensor:
    """``s + FFN(norm_slots_1(s))``: [B, K, D] -> [B, K, D]."""
    normed = F.layer_norm(
        slots, slots.shape[-1:], weights.norm_ffn_weight, weights.norm_ffn_bias, LN_EPS
    )
    hidden = F.gelu(F.linear(normed, weights.ffn_w1, weights.ffn_b1))
    return slots + F.linear(hidden, weights.ffn_w2, weights.ffn_b2)


def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, eps: float, slot_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The weighted means ``[B, K, E]`` of the attention, and its logits ``[B, K, N]``."""
    logits = slot_logits(q, k, scale, slot_mask)
    updates, _ = weighted_mean(logits.softmax(dim=1), v, eps)
    return updates, logits


def slot_attention_step(
    slots: Tensor,
    k: Tensor,
    v: Tensor,
    weights: Sequence[Tensor],
    scale: float,
    eps: float = 1e-5,
    slot_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One whole iteration: norm, query, attention, mean, GRU, norm, FFN.

    Args:
        slots: ``[B, K, D]``; k, v: ``[B, N, D]`` projected tokens.
        weights: the thirteen tensors of `StepWeights`, in its order.
        scale, eps, slot_mask: as `ocvtp_kernels.ops.slot_attention`.

    Returns:
        the new slots ``[B, K, D]`` and the iteration's logits ``[B, K, N]``, whose softmax over
        slots is its attention.
    """
    step = StepWeights(*weights)
    updates, logits = attend(query(slots, step), k, v, scale, eps, slot_mask)
    slots = gru_cell.reference(updates, slots, step.w_ih, step.w_hh, step.b_ih, step.b_hh)
    return feed_forward(slots, step), logits
