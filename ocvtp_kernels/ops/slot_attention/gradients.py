"""Gradients of the slot ops in closed form, recomputing the attention instead of storing it.

With W = A / d, d = mass + eps: ``dA = (dU v^T - delta) / d + dmass + dA_given`` where
``delta_k = dU_k . U_k``; ``dlogit = A (dA - sum_k A dA)`` (softmax over slots);
``dq = scale dlogit k``, ``dk = scale dlogit^T q``, ``dv = W^T dU``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.dtypes import accumulate_dtype
from ocvtp_kernels.ops.slot_attention.reference import slot_logits


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
    mass: Tensor | None = None,
    attention: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `ocvtp_kernels.ops.slot_attention.reference.slot_attention`.

    Args:
        q: ``[B, K, D]``; k: ``[B, N, D]``; v: ``[B, N, E]``; updates: ``[B, K, E]`` its result.
        grad_updates: ``[B, K, E]``; grad_mass: ``[B, K]``; grad_attention: ``[B, K, N]`` or None.
        mass: ``[B, K]`` its result, which spares some kernels a pass; computed again here.
        attention: ``[B, K, N]`` its result, where it was kept; a GPU computes it again.

    Returns:
        gradients of q, k and v, in their dtype, accumulated in float32 or wider.
    """
    dtype, wide = q.dtype, accumulate_dtype(q.dtype)
    q, k, v, updates, grad_updates = (t.to(wide) for t in (q, k, v, updates, grad_updates))
    if attention is None:
        attention = slot_logits(q, k, scale, slot_mask).softmax(dim=1)
    attention = attention.to(wide)
    denominator = attention.sum(dim=-1, keepdim=True) + eps
    grad_scaled = grad_updates / denominator
    delta = (grad_scaled * updates).sum(dim=-1, keepdim=True)
    grad = torch.matmul(grad_scaled, v.transpose(1, 2)) - delta + grad_mass.to(wide).unsqueeze(-1)
    if grad_attention is not None:
        grad = grad + grad_attention.to(wide)
    grad_logits = attention * (grad - (attention * grad).sum(dim=1, keepdim=True))
    grad_q = torch.matmul(grad_logits, k) * scale
    grad_k = torch.matmul(grad_logits.transpose(1, 2), q) * scale
    grad_v = torch.matmul(attention.transpose(1, 2), grad_scaled)
    return grad_q.to(dtype), grad_k.to(dtype), grad_v.to(dtype)


def gru_cell_gradients(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `ocvtp_kernels.ops.slot_attention.reference.gru_cell` in all six inputs.

    Args:
        x: ``[..., E]``; h and grad: ``[..., D]``; weights as `gru_cell` takes them.

    Returns:
        gradients in the order and dtypes of the inputs, accumulated in float32 or wider.
    """
    inputs = (x, h, w_ih, w_hh, b_ih, b_hh)
    wide = accumulate_dtype(h.dtype)
    x, h, w_ih, w_hh, b_ih, b_hh, grad = (t.to(wide) for t in (*inputs, grad))
    rows_x, rows_h = x.reshape(-1, x.shape[-1]), h.reshape(-1, h.shape[-1])
    grad = grad.reshape(rows_h.shape)
    i_r, i_z, i_n = torch.addmm(b_ih, rows_x, w_ih.T).chunk(3, dim=-1)
    h_r, h_z, h_n = torch.addmm(b_hh, rows_h, w_hh.T).chunk(3, dim=-1)
    reset, update = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
    new = torch.tanh(i_n + reset * h_n)
    grad_new = grad * (1 - update) * (1 - new * new)
    grad_update = grad * (rows_h - new) * update * (1 - update)
    grad_reset = grad_new * h_n * reset * (1 - reset)
    grad_i = torch.cat([grad_reset, grad_update, grad_new], dim=-1)
    grad_h = torch.cat([grad_reset, grad_update, grad_new * reset], dim=-1)
    grads = (
        torch.matmul(grad_i, w_ih).reshape(x.shape),
        (grad * update + torch.matmul(grad_h, w_hh)).reshape(h.shape),
        torch.matmul(grad_i.T, rows_x),
        torch.matmul(grad_h.T, rows_h),
        grad_i.sum(dim=0),
        grad_h.sum(dim=0),
    )
    g_x, g_h, g_w_ih, g_w_hh, g_b_ih, g_b_hh = (
        g.to(t.dtype) for g, t in zip(grads, inputs, strict=True)
    )
    return g_x, g_h, g_w_ih, g_w_hh, g_b_ih, g_b_hh
