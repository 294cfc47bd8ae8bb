"""The GRU's kernel beside the reference, within the error budget."""

from __future__ import annotations

import pytest
import torch

from ocvtp_kernels import ops
from tests.cases import DEVICE, assert_within_budget, random_tokens, triton_dtypes

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.gru_cell.triton import gru_cell

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]


@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize(
    ("rows", "width", "dim"),
    [
        ((1, 1), 3, 5),
        ((2, 37), 64, 64),
        ((65,), 70, 33),
        pytest.param((1, 64), 512, 512, marks=pytest.mark.slow),
    ],
)
def test_error_budget(rows: tuple[int, ...], width: int, dim: int, dtype: torch.dtype) -> None:
    shapes = [
        (*rows, width),
        (*rows, dim),
        (3 * dim, width),
        (3 * dim, dim),
        (3 * dim,),
        (3 * dim,),
    ]
    inputs = [random_tokens(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]
    inputs[2:4] = [weight * weight.shape[1] ** -0.5 for weight in inputs[2:4]]
    got = gru_cell(*(t.to(DEVICE) for t in inputs))
    oracle = ops.gru_cell.reference(*(t.double() for t in inputs))
    assert_within_budget(got.cpu(), ops.gru_cell.reference(*inputs), oracle)


def test_no_rows_are_no_launch() -> None:
    empty = torch.empty(0, 7, 5, device=DEVICE)
    weights = [torch.empty(*shape, device=DEVICE) for shape in ((15, 5), (15, 5), (15,), (15,))]
    assert gru_cell(empty, empty, *weights).shape == (0, 7, 5)
