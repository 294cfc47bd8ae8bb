from __future__ import annotations

import pytest
import torch

from ocvtp_kernels import ops
from tests.cases import triton_dtypes
from tests.ops.greedy.cases import agree, ranking, similarity

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.match_select.triton import match_select

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

EVERY_DTYPE = pytest.mark.parametrize("dtype", triton_dtypes())


@EVERY_DTYPE
@pytest.mark.parametrize(
    ("num_tokens", "kept", "budget", "drop"),
    [
        (1, 1, 1, 8),
        (2, 2, 1, 8),
        (40, 37, 37, 8),
        (40, 40, 1, 1),
        (130, 90, 20, 8),
        (40, 39, 1, 99),
    ],
)
def test_match_select(
    num_tokens: int, kept: int, budget: int, drop: int, dtype: torch.dtype
) -> None:
    arguments = (similarity(3, num_tokens, dtype), ranking(3, num_tokens, kept), budget, drop)
    agree(match_select, ops.match_select.reference, *arguments)
