from __future__ import annotations

import pytest
import torch

from ocvtp_kernels import ops
from tests.cases import triton_dtypes
from tests.ops.greedy.cases import EVERY_SIZE, agree, scores, similarity, whole_numbers

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.facility_select.triton import facility_select

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

EVERY_DTYPE = pytest.mark.parametrize("dtype", triton_dtypes())


@EVERY_DTYPE
@EVERY_SIZE
def test_facility_select(num_tokens: int, budget: int, dtype: torch.dtype) -> None:
    arguments = (similarity(3, num_tokens, dtype), scores(3, num_tokens), budget)
    agree(facility_select, ops.facility_select.reference, *arguments)


def test_gains_that_are_almost_equal() -> None:
    # The bounds of a step are then all too close to tell which gain is the largest.
    matrix = whole_numbers(2, 60, 60, most=2) + 1000
    agree(facility_select, ops.facility_select.reference, matrix, torch.ones(2, 60), 12)
