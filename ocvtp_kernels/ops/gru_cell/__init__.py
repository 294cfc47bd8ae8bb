"""The gated recurrent unit that updates slots, and its gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.dtypes import acc_dtype, product_dtype
from ocvtp_kernels.ops.gru_cell import kept_gates, native
from ocvtp_kernels.ops.registry import Autocast, Gradient, Upcast, op


def _check(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> None:
    checks.require_tensor("x", x)
    checks.require_tensor("h", h)
    checks.require_floating("h", h)
    if min(x.dim(), h.dim()) < 1 or x.shape[:-1] != h.shape[:-1]:
        raise ValueError(
            "x, h: expected shapes [..., E] and [..., D] with the same leading sizes, "
            f"got {list(x.shape)} and {list(h.shape)}"
        )
    checks.require_same_dtype_device("x", x, "h", h)
    width, dim = x.shape[-1], h.shape[-1]
    for name, tensor, shape in (
        ("w_ih", w_ih, (3 * dim, width)),
        ("w_hh", w_hh, (3 * dim, dim)),
        ("b_ih", b_ih, (3 * dim,)),
        ("b_hh", b_hh, (3 * dim,)),
    ):
        checks.require_same_dtype_device(name, tensor, "h", h)
        checks.require_shape(name, tensor, shape)


def _save(
    ctx: Any,
    output: Tensor,
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
) -> None:
    ctx.save_for_backward(x, h, w_ih, w_hh, b_ih, b_hh)


def _backward(ctx: Any, grad: Tensor) -> dict[str, Tensor]:
    # Gradients that are to be differentiated again are made of plain torch ops.
    differentiable = torch.is_grad_enabled()
    function = gru_cell_backward.reference if differentiable else gru_cell_backward
    x, h, w_ih, w_hh, b_ih, b_hh = ctx.saved_tensors
    grads = function(x, h, w_ih, w_hh, b_ih, b_hh, grad)
    return dict(zip(("x", "h", "w_ih", "w_hh", "b_ih", "b_hh"), grads, strict=True))


def _keeping_gates(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    return kept_gates.gru_cell(gru_cell_backward.reference, x, h, w_ih, w_hh, b_ih, b_hh)


@op(
    check=_check,
    fake=lambda h: h.new_empty(h.shape),
    cpu=native.gru_cell,
    plain=Upcast(product_dtype, narrow=True),
    cuda=native.gru_cell,
    triton="triton",
    autocast=Autocast(multiplies=True),
    gradient=Gradient(_save, _backward, on_cpu=_keeping_gates),
)
def gru_cell(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    """The gated recurrent unit, gates in the order reset, update, new.

    ``r = sigmoid(i_r + h_r)``, ``z = sigmoid(i_z + h_z)``, ``n = tanh(i_n + r * h_n)``,
    ``h' = (1 - z) n + z h`` with ``i = W_ih x + b_ih`` and ``h_* = W_hh h + b_hh``.
    Differentiable in all arguments. Source: Cho et al. 2014, as ``torch.nn.GRUCell`` computes it.

    Args:
        x: ``[..., E]`` input, any floating dtype; h: ``[..., D]`` state, of the same leading sizes.
        w_ih: ``[3D, E]``; w_hh: ``[3D, D]``; b_ih, b_hh: ``[3D]``. All of one dtype and device.

    Returns:
        the new state ``[..., D]`` in the dtype of ``h``; summed in float32 or wider.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit; the message names
            it.
    """
    return gru_gates(F.linear(x, w_ih, b_ih), F.linear(h, w_hh, b_hh), h)


def gru_gates(i: Tensor, h_gates: Tensor, h: Tensor) -> Tensor:
    """The gates of `gru_cell` from both GEMMs ``[..., 3D]`` and the state ``[..., D]``."""
    i_r, i_z, i_n = i.chunk(3, dim=-1)
    h_r, h_z, h_n = h_gates.chunk(3, dim=-1)
    reset = torch.sigmoid(i_r + h_r)
    update = torch.sigmoid(i_z + h_z)
    new = torch.tanh(i_n + reset * h_n)
    return (1 - update) * new + update * h


def _check_backward(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
    grad: Tensor,
) -> None:
    _check(x, h, w_ih, w_hh, b_ih, b_hh)
    checks.require_same_dtype_device("grad", grad, "h", h)
    checks.require_shape("grad", grad, h.shape)


@op(
    outputs=("grad_x", "grad_h", "grad_w_ih", "grad_w_hh", "grad_b_ih", "grad_b_hh"),
    check=_check_backward,
    fake=lambda x, h, w_ih, w_hh, b_ih, b_hh: tuple(
        t.new_empty(t.shape) for t in (x, h, w_ih, w_hh, b_ih, b_hh)
    ),
    plain=kept_gates.gru_cell_backward,
    triton="triton",
    autocast=Autocast(multiplies=True),
    serves_backward=True,
)
def gru_cell_backward(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `gru_cell` in all six inputs, its gates computed again.

    Source: the chain rule on the formula of `gru_cell`.

    Args:
        x, h, w_ih, w_hh, b_ih, b_hh: as `gru_cell`, of the same shapes and dtypes.
        grad: ``[..., D]``, of the new state.

    Returns:
        gradients in the order, shapes and dtypes of the inputs, summed in float32 or wider.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit; the message names
            it.
    """
    inputs = (x, h, w_ih, w_hh, b_ih, b_hh)
    wide = acc_dtype(h.dtype)
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
