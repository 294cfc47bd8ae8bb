"""The GRU's gradients: gates computed again from both GEMMs, in one kernel that works in place."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.triton_common.blocks import ceil_div
from ocvtp_kernels.triton_common.launch import launch
from ocvtp_kernels.triton_common.maths import tanh

NUMBERS = 1024  # of the state, a program


@triton.jit
def gates_backward_kernel(
    i,
    h_gates,
    h,
    grad,
    grad_h,
    numbers,
    dim,
    NUMBERS: tl.constexpr,
):
    """The gradients of both GEMMs, each in its place, and that of h past them.

    Args:
        i, h_gates: ``[R, 3D]``, ``W_ih x + b_ih`` and ``W_hh h + b_hh``; overwritten.
        h, grad: ``[R, D]``; grad_h: ``[R, D]``, written; all contiguous.
        numbers: R times D.
    """
    place = tl.program_id(0).to(tl.int64) * NUMBERS + tl.arange(0, NUMBERS)
    live = place < numbers
    row, column = place // dim, place % dim
    gate = row * 3 * dim + column
    state = tl.load(h + place, mask=live, other=0.0).to(tl.float32)
    g = tl.load(grad + place, mask=live, other=0.0).to(tl.float32)
    i_reset = tl.load(i + gate, mask=live, other=0.0).to(tl.float32)
    i_update = tl.load(i + gate + dim, mask=live, other=0.0).to(tl.float32)
    i_new = tl.load(i + gate + 2 * dim, mask=live, other=0.0).to(tl.float32)
    h_reset = tl.load(h_gates + gate, mask=live, other=0.0).to(tl.float32)
    h_update = tl.load(h_gates + gate + dim, mask=live, other=0.0).to(tl.float32)
    h_new = tl.load(h_gates + gate + 2 * dim, mask=live, other=0.0).to(tl.float32)
    reset = tl.sigmoid(i_reset + h_reset)
    update = tl.sigmoid(i_update + h_update)
    new = tanh(i_new + reset * h_new)
    of_new = g * (1.0 - update) * (1.0 - new * new)
    of_update = g * (state - new) * update * (1.0 - update)
    of_reset = of_new * h_new * reset * (1.0 - reset)
    kind = i.dtype.element_ty
    tl.store(i + gate, of_reset.to(kind), mask=live)
    tl.store(i + gate + dim, of_update.to(kind), mask=live)
    tl.store(i + gate + 2 * dim, of_new.to(kind), mask=live)
    tl.store(h_gates + gate, of_reset.to(kind), mask=live)
    tl.store(h_gates + gate + dim, of_update.to(kind), mask=live)
    tl.store(h_gates + gate + 2 * dim, (of_new * reset).to(kind), mask=live)
    tl.store(grad_h + place, (g * update).to(kind), mask=live)


def gru_cell_gradients(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`ocvtp_kernels.ops.slot_attention.gradients.gru_cell_gradients`; the gates are computed again."""
    rows_x, rows_h = x.reshape(-1, x.shape[-1]), h.reshape(-1, h.shape[-1])
    rows, dim = rows_h.shape
    i = torch.addmm(b_ih, rows_x, w_ih.T)
    h_gates = torch.addmm(b_hh, rows_h, w_hh.T)
    grad_h = torch.empty((rows, dim), dtype=h.dtype, device=h.device)
    launch(
        gates_backward_kernel,
        (ceil_div(rows * dim, NUMBERS),),
        {
            "i": i,
            "h_gates": h_gates,
            "h": rows_h.contiguous(),
            "grad": grad.reshape(rows, dim).contiguous(),
            "grad_h": grad_h,
            "numbers": rows * dim,
            "dim": dim,
            "NUMBERS": NUMBERS,
        },
        num_warps=4,
    )
    return (
        torch.mm(i, w_ih).view(x.shape),
        torch.addmm(grad_h, h_gates, w_hh).view(h.shape),
        torch.mm(i.T, rows_x),
        torch.mm(h_gates.T, rows_h),
        i.sum(dim=0),
        h_gates.sum(dim=0),
    )
