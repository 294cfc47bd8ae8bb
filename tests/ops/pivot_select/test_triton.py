from __future__ import annotations

import pytest
import torch

from ocvtp_kernels import ops
from tests.cases import random_tokens, triton_dtypes
from tests.ops.greedy.cases import agree

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.pivot_select.triton import pivot_select

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

EVERY_DTYPE = pytest.mark.parametrize("dtype", triton_dtypes())


@EVERY_DTYPE
@pytest.mark.parametrize(
    ("num_tokens", "budget", "dim"), [(1, 1, 3), (2, 2, 1), (9, 9, 40), (37, 6, 300), (130, 3, 3)]
)
def test_pivot_select(num_tokens: int, budget: int, dim: int, dtype: torch.dtype) -> None:
    points = random_tokens(2, num_tokens + 1, dim, dtype=dtype)[:, 1:]
    agree(pivot_select, ops.pivot_select.reference, points, budget)
