"""Slot Attention in plain PyTorch on the CPU, in the dtype that it multiplies in."""

from __future__ import annotations

from torch import Tensor

from ocvtp_kernels.dtypes import product_dtype
from ocvtp_kernels.ops.slot_attention import reference


def slot_attention_with_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    eps: float = 1e-5,
    slot_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.slot_attention`, returned in the input dtype."""
    dtype = product_dtype(q.dtype, q.device)
    updates, mass, attention = reference.slot_attention(
        q.to(dtype), k.to(dtype), v.to(dtype), scale, eps, slot_mask
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
    return slot_attention_with_attention(q, k, v, scale, eps, slot_mask)[:2]


def gru_cell(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    """`reference.gru_cell`, returned in the input dtype."""
    dtype = product_dtype(h.dtype, h.device)
    return reference.gru_cell(*(t.to(dtype) for t in (x, h, w_ih, w_hh, b_ih, b_hh))).to(h.dtype)
