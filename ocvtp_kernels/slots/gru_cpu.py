"""The GRU's gradients on the CPU, from gates that the forward pass kept, or from new ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.dtypes import accumulate_dtype


def forward_rows(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> tuple[Tensor, Tensor]:
    """`ocvtp_kernels.slots.reference.gru_cell` of rows, and what its gradient needs.

    The four numbers an element that are kept are half of what autograd keeps of the plain module.

    Args:
        x: ``[R, E]``; h: ``[R, D]``; weights as `gru_cell` takes them; all of one dtype.

    Returns:
        the new state ``[R, D]``; gates ``[R, 4D]``: r, z, n and ``h_n``, the hidden product of the
        new gate.
    """
    dim = h.shape[1]
    gates = h.new_empty((h.shape[0], 4 * dim))
    torch.addmm(b_ih, x, w_ih.T, out=gates[:, : 3 * dim])
    by_hidden = torch.addmm(b_hh, h, w_hh.T)
    gates[:, : 2 * dim].add_(by_hidden[:, : 2 * dim]).sigmoid_()
    gates[:, 3 * dim :].copy_(by_hidden[:, 2 * dim :])
    reset, update, new, hidden = gates.split(dim, dim=1)
    new.addcmul_(reset, hidden).tanh_()
    return torch.lerp(new, h, update), gates


def backward_rows(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, gates: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients in x, h, w_ih, w_hh, b_ih and b_hh of `forward_rows`, from its gates.

    Args:
        grad: ``[R, D]``, of the new state.
    """
    rows, dim = h.shape
    reset, update, new, hidden = gates.split(dim, dim=1)
    # Columns of r, z and n, by the input's products and by the state's, which differ in n.
    by_input, by_hidden = gates.new_empty((2, rows, 3 * dim)).unbind(0)
    of_reset, of_update, of_new = by_input.split(dim, dim=1)
    grad_h = grad * update
    aten = torch.ops.aten
    aten.tanh_backward.grad_input(grad - grad_h, new, grad_input=of_new)
    aten.sigmoid_backward.grad_input((h - new).mul_(grad), update, grad_input=of_update)
    aten.sigmoid_backward.grad_input(of_new * hidden, reset, grad_input=of_reset)
    by_hidden[:, : 2 * dim].copy_(by_input[:, : 2 * dim])
    torch.mul(of_new, reset, out=by_hidden[:, 2 * dim :])
    return (
        torch.mm(by_input, w_ih),
        grad_h.addmm_(by_hidden, w_hh),
        torch.mm(by_input.T, x),
        torch.mm(by_hidden.T, h),
        by_input.sum(dim=0),
        by_hidden.sum(dim=0),
    )


def gru_cell_gradients(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`ocvtp_kernels.slots.gradients.gru_cell_gradients`, with fewer passes over the rows."""
    inputs = (x, h, w_ih, w_hh, b_ih, b_hh)
    wide = accumulate_dtype(h.dtype)
    rows_x, rows_h, *weights, grad = (tensor.to(wide) for tensor in (*inputs, grad))
    rows_x, rows_h = rows_x.reshape(-1, x.shape[-1]), rows_h.reshape(-1, h.shape[-1])
    _, gates = forward_rows(rows_x, rows_h, *weights)
    found = backward_rows(rows_x, rows_h, weights[0], weights[1], gates, grad.reshape(rows_h.shape))
    g_x, g_h, g_w_ih, g_w_hh, g_b_ih, g_b_hh = (
        g.view(t.shape).to(t.dtype) for g, t in zip(found, inputs, strict=True)
    )
    return g_x, g_h, g_w_ih, g_w_hh, g_b_ih, g_b_hh
