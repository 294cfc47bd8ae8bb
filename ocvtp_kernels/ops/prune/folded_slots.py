"""Slot Attention on folded weights: tokens are read once an iteration, as key and value."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ocvtp_kernels.ops.prune.weights import FoldedSlots
from ocvtp_kernels.ops.slot_attention.reference import LN_EPS, gru_gates

MASS_EPS = 1e-5


def folded_logits(
    slots: Tensor, x_hat: Tensor, weights: FoldedSlots, dtype: torch.dtype | None = None
) -> Tensor:
    """The scaled logits of slots ``[B, K, D]`` on x^ ``[B, N, D]``: ``[B, K, N]``, in ``dtype``."""
    dtype = slots.dtype if dtype is None else dtype
    normed = F.layer_norm(slots, slots.shape[-1:], eps=LN_EPS)
    q = F.linear(normed, weights.query_weight, weights.query_bias)
    constant = F.linear(normed, weights.constant_weight.unsqueeze(0), weights.constant_bias)
    return torch.baddbmm(constant.to(dtype), q.to(dtype), x_hat.to(dtype).transpose(1, 2))


def folded_step(slots: Tensor, x_hat: Tensor, weights: FoldedSlots) -> Tensor:
    """One whole iteration: slots ``[B, K, D]``, x^ ``[B, N, D]`` -> ``[B, K, D]``."""
    attention = folded_logits(slots, x_hat, weights).softmax(dim=1)
    mass = attention.sum(dim=-1, keepdim=True)
    per_mass = (mass + MASS_EPS).reciprocal_()
    updates = torch.bmm(attention, x_hat).mul_(per_mass)
    gates = F.linear(updates, weights.gates_weight, weights.gates_bias)
    gates = torch.addcmul(gates, mass * per_mass, weights.gates_shift)
    slots = gru_gates(gates, F.linear(slots, weights.hidden_weight, weights.hidden_bias), slots)
    normed = F.layer_norm(slots, slots.shape[-1:], eps=LN_EPS)
    hidden = F.gelu(F.linear(normed, weights.ffn_w1, weights.ffn_b1))
    return slots + F.linear(hidden, weights.ffn_w2, weights.ffn_b2)


def folded_attention_logits(
    slots: Tensor,
    x_hat: Tensor,
    weights: FoldedSlots,
    num_iter: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The last of ``num_iter`` iterations' logits ``[B, K, N]``, in ``dtype`` or the slots' own.

    The last iteration's mean, GRU and FFN feed nothing that selects, so they are not computed.
    """
    for _ in range(num_iter - 1):
        slots = folded_step(slots, x_hat, weights)
    return folded_logits(slots, x_hat, weights, dtype)
