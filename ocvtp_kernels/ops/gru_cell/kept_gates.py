"""The GRU on the CPU with its gates kept for the gradient, and its gradient.

All in the dtype that the CPU multiplies in, with fewer passes and fewer values kept than autograd
has of the plain module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels.dtypes import product_dtype


def forward_rows(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> tuple[Tensor, Tensor]:
    """`ocvtp_kernels.ops.gru_cell` of rows, and what its gradient needs.

    The four values an element that are kept are half of what autograd keeps of the plain module.

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


class _KeptGates(torch.autograd.Function):
    """``ocvtp::gru_cell`` where a gradient is to come: to compute the gates again costs more."""

    @staticmethod
    def forward(ctx: Any, again: Callable[..., Any], *inputs: Tensor) -> Tensor:
        h = inputs[1]
        state, gates = forward_rows(*_rows(inputs))
        ctx.again = again
        ctx.save_for_backward(*inputs, gates)
        return state.to(h.dtype).view(h.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, gates = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (None, *ctx.again(*inputs, grad))
        return (None, *_gradients(inputs, gates, grad))


def gru_cell(again: Callable[..., Any], *inputs: Tensor) -> Tensor:
    """`ocvtp_kernels.ops.gru_cell` of its arguments, its gates kept for the gradient.

    Args:
        again: makes the gradients of plain torch ops, where they are to be differentiated again.
    """
    state: Tensor = _KeptGates.apply(again, *inputs)
    return state


def gru_cell_backward(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, grad: Tensor
) -> tuple[Tensor, ...]:
    """`ocvtp_kernels.ops.gru_cell_backward` with fewer passes over the rows."""
    inputs = (x, h, w_ih, w_hh, b_ih, b_hh)
    return _gradients(inputs, forward_rows(*_rows(inputs))[1], grad)


def _rows(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The op's inputs, x and h as rows, in the dtype to multiply in."""
    x, h, *weights = inputs
    dtype = product_dtype(h.dtype, h.device)
    rows = (x.reshape(-1, x.shape[-1]), h.reshape(-1, h.shape[-1]), *weights)
    return [tensor.to(dtype) for tensor in rows]


def _gradients(inputs: Sequence[Tensor], gates: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    x, h, w_ih, w_hh, *_ = _rows(inputs)
    grads = backward_rows(x, h, w_ih, w_hh, gates, grad.reshape(h.shape).to(h.dtype))
    return tuple(g.view(t.shape).to(t.dtype) for g, t in zip(grads, inputs, strict=True))
