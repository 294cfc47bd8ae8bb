"""One whole iteration of Slot Attention, of the fused ops.

On the CPU, where a gradient is to come, the attention and the GRU's gates are kept for it: making
them again would cost a CPU more than their memory is worth, and both together are still less than
autograd keeps of the plain module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels import backends
from ocvtp_kernels.slots.gradients import gru_cell_gradients, slot_attention_gradients
from ocvtp_kernels.slots.gru_cpu import backward_rows, forward_rows
from ocvtp_kernels.slots.reference import StepWeights, feed_forward, query

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
    """`ocvtp_kernels.slots.reference.slot_attention_step` on the fused ops.

    Returns:
        the new slots ``[B, K, D]``, and the attention ``[B, K, N]`` if it is needed.
    """
    gru = (weights.w_ih, weights.w_hh, weights.b_ih, weights.b_hh)
    q = query(slots, weights)
    if _keeps(q, k, v, slots, *gru):
        updates, attention = _Competition.apply(q, k, v, scale, eps, slot_mask)
        state = _Gru.apply(updates, slots, *gru)
    else:
        updates, attention = _compete(q, k, v, scale, eps, slot_mask, need_attention)
        state = torch.ops.ocvtp.gru_cell(updates, slots, *gru)
    return feed_forward(state, weights, dropout), attention if need_attention else None


def _compete(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    eps: float,
    slot_mask: Tensor | None,
    need_attention: bool,
) -> tuple[Tensor, Tensor | None]:
    if not need_attention:
        return torch.ops.ocvtp.slot_attention(q, k, v, scale, eps, slot_mask)[0], None
    op = torch.ops.ocvtp.slot_attention_with_attention
    updates, _, attention = op(q, k, v, scale, eps, slot_mask)
    return updates, attention


def _keeps(*inputs: Tensor) -> bool:
    """Whether a gradient is to come, on a CPU that computes in the inputs' own dtype."""
    dtype = inputs[0].dtype
    return (
        inputs[0].device.type == "cpu"
        and torch.is_grad_enabled()
        and backends.forced() in (None, "cpu")
        and dtype in (torch.float32, torch.float64)
        and any(tensor.requires_grad for tensor in inputs)
        and all(tensor.dtype == dtype for tensor in inputs)
    )


class _Competition(torch.autograd.Function):
    """``ocvtp::slot_attention_with_attention`` without the mass, its attention kept."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        eps: float,
        slot_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        op = torch.ops.ocvtp.slot_attention_with_attention
        updates, _, attention = op(q, k, v, scale, eps, slot_mask)
        ctx.scale, ctx.eps = scale, eps
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, attention, updates)
        return updates, attention

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_attention: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        q, k, v, attention, updates = ctx.saved_tensors
        if grad is None:
            grad = torch.zeros_like(updates)
        # Where the gradients are to be differentiated again, they are made of plain torch ops.
        gradients_of = (
            slot_attention_gradients
            if torch.is_grad_enabled()
            else torch.ops.ocvtp.slot_attention_backward
        )
        given = (grad, grad.new_zeros(grad.shape[:2]), grad_attention)
        # No mask: the attention that was kept has it.
        kept = (None, attention)
        grads = gradients_of(q, k, v, ctx.scale, ctx.eps, None, updates, *given, *kept)
        return *grads, None, None, None


class _Gru(torch.autograd.Function):
    """``ocvtp::gru_cell`` with its gates kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
    ) -> Tensor:
        rows_x, rows_h = x.reshape(-1, x.shape[-1]), h.reshape(-1, h.shape[-1])
        state, gates = forward_rows(rows_x, rows_h, w_ih, w_hh, b_ih, b_hh)
        ctx.save_for_backward(x, h, w_ih, w_hh, b_ih, b_hh, gates)
        return state.view(h.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, h, w_ih, w_hh, b_ih, b_hh, gates = ctx.saved_tensors
        if torch.is_grad_enabled():
            # Of plain torch ops: these may be differentiated again.
            return gru_cell_gradients(x, h, w_ih, w_hh, b_ih, b_hh, grad)
        rows_x, rows_h = x.reshape(-1, x.shape[-1]), h.reshape(-1, h.shape[-1])
        grad_x, grad_h, *by_weight = backward_rows(
            rows_x, rows_h, w_ih, w_hh, gates, grad.reshape(rows_h.shape)
        )
        return grad_x.view(x.shape), grad_h.view(h.shape), *by_weight
