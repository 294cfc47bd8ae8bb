"""The GRU's gradients on Triton kernels beside plain PyTorch's, within the error budget."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops
from tests.cases import DEVICE, assert_within_budget, random_tokens, triton_dtypes

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.gru_cell.triton import gru_cell_backward

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]


@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize(
    ("rows", "width", "dim"), [((1, 9), 3, 5), ((2, 37), 64, 64), ((65,), 70, 33)]
)
def test_error_budget(
    rows: tuple[int, ...], width: int, dim: int, scale: float, dtype: torch.dtype
) -> None:
    shapes = [(*rows, width), (*rows, dim), (3 * dim, width), (3 * dim, dim), (3 * dim,)]
    inputs = [scale * random_tokens(*s, seed=i, dtype=dtype) for i, s in enumerate(shapes)]
    inputs[2:4] = [weight * weight.shape[1] ** -0.5 for weight in inputs[2:4]]
    inputs.append(inputs[-1].flip(0))
    grad = random_tokens(*rows, dim, seed=9, dtype=dtype)

    def plain(kind: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [tensor.detach().to(kind).requires_grad_() for tensor in inputs]
        return torch.autograd.grad(ops.gru_cell.reference(*leaves), leaves, grad.to(kind))

    got = gru_cell_backward(*(t.to(DEVICE) for t in (*inputs, grad)))
    for one, rough, exact in zip(got, plain(dtype), plain(torch.float64), strict=True):
        assert_within_budget(one.cpu(), rough, exact)


def test_no_rows_have_no_gradient() -> None:
    empty = torch.empty(0, 7, 5, device=DEVICE)
    shapes = ((15, 5), (15, 5), (15,), (15,))
    weights = [torch.ones(*shape, device=DEVICE) for shape in shapes]
    got = gru_cell_backward(empty, empty, *weights, empty)
    assert [tuple(g.shape) for g in got] == [(0, 7, 5), (0, 7, 5), *shapes]
    assert all((gradient == 0).all() for gradient in got)
