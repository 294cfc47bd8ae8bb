"""Slot Attention on the native kernels: C++ on the CPU, CUDA C++ on a GPU.

On the CPU float16 is multiplied, and kept between kernels, in float32; so is bfloat16 where the CPU
does not multiply it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ocvtp_kernels.blas import float32_sums
from ocvtp_kernels.dtypes import accumulate_dtype
from ocvtp_kernels.native import WIDE, multiplied

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
    """`ocvtp_kernels.ops.slot_attention.reference.slot_attention`, summed in float32 or wider."""
    updates, mass, attention = torch.ops.ocvtp_native.slot_attention(
        multiplied(q), multiplied(k), multiplied(v), None, slot_mask, scale, eps, with_attention
    )
    dtype = q.dtype
    if updates.dtype == dtype == mass.dtype:
        return updates, mass, attention
    return updates.to(dtype), mass.to(dtype), attention.to(dtype)


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
    """`ocvtp_kernels.ops.slot_attention.gradients.slot_attention_gradients`, on the CPU."""
    grads = torch.ops.ocvtp_native.slot_attention_backward(
        multiplied(q),
        multiplied(k),
        multiplied(v),
        slot_mask,
        scale,
        eps,
        multiplied(updates),
        multiplied(grad_updates),
        grad_mass.to(accumulate_dtype(q.dtype)),
        None if grad_attention is None else multiplied(grad_attention),
        None if attention is None else multiplied(attention),
    )
    grad_q, grad_k, grad_v = (grad.to(q.dtype) for grad in grads)
    return grad_q, grad_k, grad_v


def gru_cell(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    """`ocvtp_kernels.ops.slot_attention.reference.gru_cell`, summed in float32 or wider."""
    dtype = h.dtype
    if not (h.is_cpu and dtype in WIDE):
        x, h, w_ih, w_hh, b_ih, b_hh = map(multiplied, (x, h, w_ih, w_hh, b_ih, b_hh))
    with float32_sums(h.device):
        x_gates, h_gates = F.linear(x, w_ih, b_ih), F.linear(h, w_hh, b_hh)
    state: Tensor = torch.ops.ocvtp_native.gru_gates(
        x_gates, h_gates, h, None, None, None, None, None, 0.0, False
    )[0]
    return state if state.dtype == dtype else state.to(dtype)
