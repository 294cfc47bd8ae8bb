from __future__ import annotations

import pytest
import torch

from ocvtp_kernels import ops
from ocvtp_kernels.selectors.similarity import cosine
from tests.cases import DEVICE, random_tokens, triton_dtypes
from tests.ops.greedy.cases import EVERY_SIZE, agree, scores

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.dpp_select.triton import dpp_select

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

EVERY_DTYPE = pytest.mark.parametrize("dtype", triton_dtypes())


@EVERY_DTYPE
@EVERY_SIZE
def test_dpp_select(num_tokens: int, budget: int, dtype: torch.dtype) -> None:
    # As many channels as tokens: there is something left to explain to the end.
    matrix = cosine(random_tokens(3, num_tokens, num_tokens)).to(dtype)
    arguments = (matrix, scores(3, num_tokens).to(dtype), budget)
    agree(dpp_select, ops.dpp_select.reference, *arguments)


def test_what_is_next_to_nothing_explains_nothing() -> None:
    matrix = torch.eye(4)[None]
    matrix[:, 1, 2] = matrix[:, 2, 1] = 0.95
    weight = torch.tensor([[1.0, 1e-7, 9e-8, 8e-8]])
    agree(dpp_select, ops.dpp_select.reference, matrix, weight, 4)
    agree(dpp_select, ops.dpp_select.reference, matrix[:, 1:, 1:], weight[:, 1:], 3)
    # Beside the first token, the third is not explained by the second; alone it is.
    assert dpp_select(matrix.to(DEVICE), weight.to(DEVICE), 4).tolist() == [[0, 1, 2, 3]]
