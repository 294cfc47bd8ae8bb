"""Slot Attention on the native kernels: C++ on the CPU, CUDA C++ on a GPU.

On the CPU float16 is multiplied, and kept between kernels, in float32; so is bfloat16 where the CPU
does not multiply it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.dtypes import acc_dtype
from ocvtp_kernels.native import for_products


def slot_attention_with_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    eps: float = 1e-5,
    slot_mask: Tensor | None = None,
    *,
    with_attention: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The attention is empty unless asked for."""
    updates, mass, attention = torch.ops.ocvtp_native.slot_attention(
        for_products(q),
        for_products(k),
        for_products(v),
        None,
        slot_mask,
        scale,
        eps,
        with_attention,
    )
    dtype = q.dtype
    if updates.dtype == dtype == mass.dtype:
        return updates, mass, attention
    return updates.to(dtype), mass.to(dtype), attention.to(dtype)


def slot_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, eps: float, slot_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """No ``[B, K, N]`` in memory."""
    return slot_attention_with_attention(q, k, v, scale, eps, slot_mask, with_attention=False)[:2]


def slot_attention_backward(
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
    attention: Tensor | None,
) -> tuple[Tensor, ...]:
    """On the CPU alone."""
    grads = torch.ops.ocvtp_native.slot_attention_backward(
        for_products(q),
        for_products(k),
        for_products(v),
        slot_mask,
        scale,
        eps,
        for_products(updates),
        for_products(grad_updates),
        grad_mass.to(acc_dtype(q.dtype)),
        None if grad_attention is None else for_products(grad_attention),
        None if attention is None else for_products(attention),
    )
    return tuple(grad.to(q.dtype) for grad in grads)
