from __future__ import annotations

import pytest
import torch

from ocvtp_kernels import ops
from tests.cases import triton_dtypes
from tests.ops.greedy.cases import EVERY_SIZE, agree, similarity

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.farthest_select.triton import farthest_select

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

EVERY_DTYPE = pytest.mark.parametrize("dtype", triton_dtypes())


@EVERY_DTYPE
@EVERY_SIZE
@pytest.mark.parametrize("distinct", [True, False])
def test_farthest_select(num_tokens: int, budget: int, distinct: bool, dtype: torch.dtype) -> None:
    distances = 1 - similarity(3, num_tokens, dtype)
    first = torch.arange(3) % num_tokens
    for start in (None, first):
        arguments = (distances, start, budget, distinct)
        agree(farthest_select, ops.farthest_select.reference, *arguments)


def test_both_smallest_distances_of_a_column_may_come_from_one_lane() -> None:
    distances = torch.full((1, 130, 130), 9.0)
    distances[:, 1], distances[:, 65] = 0.0, torch.arange(130.0) % 7
    agree(farthest_select, ops.farthest_select.reference, distances, None, 3)
