"""Slot Attention on the native kernels: C++ on the CPU, CUDA C++ on a GPU.

On the CPU half precision is computed, and kept between kernels, in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.dtypes import accumulate_dtype
from ocvtp_kernels.fold import FoldedSlots
from ocvtp_kernels.linear.native import linear
from ocvtp_kernels.native import computed
from ocvtp_kernels.slots.folded import MASS_EPS
from ocvtp_kernels.slots.reference import LN_EPS

MOST_WIDTH = 8192  # of a slot, on a GPU: its new state waits in shared memory for its norm


def slot_attention_with_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    eps: float = 1e-5,
    slot_mask: Tensor | None = None,
    with_attention: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """`ocvtp_kernels.slots.reference.slot_attention`, summed in float32 or wider."""
    updates, mass, attention = torch.ops.ocvtp_native.slot_attention(
        computed(q), computed(k), computed(v), None, slot_mask, scale, eps, with_attention
    )
    return updates.to(q.dtype), mass.to(q.dtype), attention.to(q.dtype)


def slot_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    eps: float = 1e-5,
    slot_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`slot_attention_with_attention` without the attention."""
    return slot_attention_with_attention(q, k, v, scale, eps, slot_mask, False)[:2]


def slot_attention_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    eps: float,
    slot_mask: Tensor | None,
    updates: Tensor,
    grad_updates: Tensor,
    grad_mass: Tensor,
    grad_attention: Tensor | None,
    attention: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`ocvtp_kernels.slots.gradients.slot_attention_gradients`, on the CPU."""
    grads = torch.ops.ocvtp_native.slot_attention_backward(
        computed(q),
        computed(k),
        computed(v),
        slot_mask,
        scale,
        eps,
        computed(updates),
        computed(grad_updates),
        computed(grad_mass),
        None if grad_attention is None else computed(grad_attention),
        None if attention is None else computed(attention),
    )
    grad_q, grad_k, grad_v = (grad.to(q.dtype) for grad in grads)
    return grad_q, grad_k, grad_v


def gru_cell(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    """`ocvtp_kernels.slots.reference.gru_cell`, summed in float32 or wider."""
    x_gates = torch.nn.functional.linear(computed(x), computed(w_ih), computed(b_ih))
    h_gates = torch.nn.functional.linear(computed(h), computed(w_hh), computed(b_hh))
    state, _ = torch.ops.ocvtp_native.gru_gates(
        x_gates, h_gates, computed(h), None, None, 0.0, False
    )
    return state.view(h.shape).to(h.dtype)


def query(normed: Tensor, weights: FoldedSlots) -> tuple[Tensor, Tensor]:
    """Q' ``[B, K, D]`` and its constant ``[B, K]``, float32 or wider, of s^ ``[B, K, D]``."""
    q = linear(normed, weights.query_weight, weights.query_bias)
    return q[..., :-1], q[..., -1].to(accumulate_dtype(q.dtype))


def iterate(
    slots: Tensor, x_hat: Tensor, weights: FoldedSlots, num_iter: int
) -> tuple[Tensor, Tensor]:
    """The last iteration's queries and constants, after ``num_iter - 1`` whole iterations.

    Args:
        slots: ``[B, K, D]`` initial slots; x_hat: ``[B, N, D]``, what `encode` returns.

    Returns:
        q' ``[B, K, D]`` and c ``[B, K]``: ``logits = q' x^T + c``.
    """
    native = torch.ops.ocvtp_native
    # Slots are summed over iterations in float32 or wider, products take the dtype of the tokens.
    slots = slots.to(accumulate_dtype(slots.dtype))
    shift = weights.gates_shift.to(x_hat.dtype)
    normed = native.layer_norm(slots, LN_EPS).to(x_hat.dtype)
    for _ in range(num_iter - 1):
        q, constant = query(normed, weights)
        updates, mass, _ = native.slot_attention(
            q, x_hat, x_hat, constant, None, 1.0, MASS_EPS, False
        )
        x_gates = linear(updates, weights.gates_weight, weights.gates_bias)
        h_gates = linear(slots.to(x_hat.dtype), weights.hidden_weight, weights.hidden_bias)
        state, normed = native.gru_gates(x_gates, h_gates, slots, shift, mass, MASS_EPS, True)
        hidden = linear(normed, weights.ffn_w1, weights.ffn_b1, gelu=True)
        out = linear(hidden, weights.ffn_w2, weights.ffn_b2)
        slots, normed = native.add_layer_norm(state, out, LN_EPS)
    return query(normed, weights)
