"""The GRU on the CPU where a gradient is to come: the gates are kept, so no product is made twice.

The four numbers an element that are kept are half of what autograd keeps of the plain module.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.dtypes import accumulate_dtype
from ocvtp_kernels.slots.reference import StepWeights


def gru_cell_with_gates(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> tuple[Tensor, Tensor]:
    """`ocvtp_kernels.slots.reference.gru_cell`, and what its gradient needs.

    Args:
        x: ``[..., E]``; h: ``[..., D]``; weights as `gru_cell` takes them.

    Returns:
        the new state ``[..., D]`` in h's dtype; gates ``[..., 4D]``, float32 or wider: r, z, n and
        ``h_n``, the hidden product of the new gate.
    """
    dtype, dim = h.dtype, h.shape[-1]
    wide = accumulate_dtype(dtype)
    x, rows, w_ih, w_hh, b_ih, b_hh = (t.to(wide) for t in (x, h, w_ih, w_hh, b_ih, b_hh))
    rows = rows.reshape(-1, dim)
    gates = rows.new_empty((rows.shape[0], 4 * dim))
    both, hidden = gates[:, : 2 * dim], gates[:, 3 * dim :]
    torch.addmm(b_ih, x.reshape(-1, x.shape[-1]), w_ih.T, out=gates[:, : 3 * dim])
    both.addmm_(rows, w_hh[: 2 * dim].T).add_(b_hh[: 2 * dim]).sigmoid_()
    torch.addmm(b_hh[2 * dim :], rows, w_hh[2 * dim :].T, out=hidden)
    reset, update, new = gates[:, : 3 * dim].split(dim, dim=1)
    new.addcmul_(reset, hidden).tanh_()
    state = torch.lerp(new, rows, update)
    return state.view(h.shape).to(dtype), gates.view(*h.shape[:-1], 4 * dim)


def gru_cell_gradients(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
    grad: Tensor,
    gates: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`ocvtp_kernels.slots.gradients.gru_cell_gradients`, from the gates where they were kept."""
    inputs = (x, h, w_ih, w_hh, b_ih, b_hh)
    if gates is None:
        gates = gru_cell_with_gates(*inputs)[1]
    dim = h.shape[-1]
    rows_x, rows_h, w_ih, w_hh, grad = (t.to(gates.dtype) for t in (*inputs[:4], grad))
    rows_x, rows_h = rows_x.reshape(-1, x.shape[-1]), rows_h.reshape(-1, dim)
    grad = grad.reshape(-1, dim)
    reset, update, new, hidden = gates.view(-1, 4 * dim).split(dim, dim=1)
    # Columns of r, z, n, and of n once more as its hidden product sees it.
    found = torch.empty((rows_h.shape[0], 4 * dim), dtype=gates.dtype, device=gates.device)
    of_reset, of_update, of_new, of_hidden = found.split(dim, dim=1)
    by_input, by_both = found[:, : 3 * dim], found[:, : 2 * dim]
    grad_h = grad * update
    aten = torch.ops.aten
    aten.tanh_backward.grad_input(grad - grad_h, new, grad_input=of_new)
    aten.sigmoid_backward.grad_input((rows_h - new).mul_(grad), update, grad_input=of_update)
    aten.sigmoid_backward.grad_input(of_new * hidden, reset, grad_input=of_reset)
    torch.mul(of_new, reset, out=of_hidden)
    grad_h.addmm_(by_both, w_hh[: 2 * dim]).addmm_(of_hidden, w_hh[2 * dim :])
    grad_w_hh = torch.empty_like(w_hh)
    torch.mm(by_both.T, rows_h, out=grad_w_hh[: 2 * dim])
    torch.mm(of_hidden.T, rows_h, out=grad_w_hh[2 * dim :])
    biases = found.sum(dim=0)
    grads = (
        torch.mm(by_input, w_ih).view(x.shape),
        grad_h.view(h.shape),
        torch.mm(by_input.T, rows_x),
        grad_w_hh,
        biases[: 3 * dim].clone(),
        torch.cat([biases[: 2 * dim], biases[3 * dim :]]),
    )
    g_x, g_h, g_w_ih, g_w_hh, g_b_ih, g_b_hh = (
        g.to(t.dtype) for g, t in zip(grads, inputs, strict=True)
    )
    return g_x, g_h, g_w_ih, g_w_hh, g_b_ih, g_b_hh


def gru(x: Tensor, h: Tensor, weights: StepWeights) -> Tensor:
    """``ocvtp::gru_cell`` of a step's weights; on the CPU its gates are kept for a gradient."""
    arguments = (x, h, weights.w_ih, weights.w_hh, weights.b_ih, weights.b_hh)
    keep = x.device.type == "cpu" and torch.is_grad_enabled()
    if keep and any(tensor.requires_grad for tensor in arguments):
        state: Tensor = torch.ops.ocvtp.gru_cell_with_gates(*arguments)[0]
    else:
        state = torch.ops.ocvtp.gru_cell(*arguments)
    return state
