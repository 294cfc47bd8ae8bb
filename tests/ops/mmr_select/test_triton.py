from __future__ import annotations

import pytest
import torch

from ocvtp_kernels import ops
from tests.cases import triton_dtypes
from tests.ops.greedy.cases import EVERY_SIZE, agree, scores, similarity
from tests.ops.mmr_select.cases import TRADE_OFFS, spoilt

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.mmr_select.triton import mmr_select

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

EVERY_DTYPE = pytest.mark.parametrize("dtype", triton_dtypes())


@EVERY_DTYPE
@EVERY_SIZE
@pytest.mark.parametrize("trade_off", [0.0, 0.3, 1.0])
def test_mmr_select(num_tokens: int, budget: int, trade_off: float, dtype: torch.dtype) -> None:
    arguments = (scores(3, num_tokens).to(dtype), similarity(3, num_tokens, dtype))
    agree(mmr_select, ops.mmr_select.reference, *arguments, budget, trade_off)


@pytest.mark.parametrize("trade_off", TRADE_OFFS)
def test_numbers_that_are_not_finite(trade_off: float) -> None:
    for seed in range(5):
        agree(mmr_select, ops.mmr_select.reference, *spoilt(2, 37, seed), 37, trade_off)
