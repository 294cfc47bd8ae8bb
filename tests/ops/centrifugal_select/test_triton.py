"""The kernel of the centrifugal expansion beside the reference: every output equal."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from ocvtp_kernels import ops
from tests.cases import triton_dtypes
from tests.ops.greedy.cases import EVERY_SIZE, agree, ranking, similarity, whole_numbers

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.centrifugal_select.triton import centrifugal_select

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

GRIDS = {1: (1, 1), 2: (1, 2), 5: (5, 1), 37: (1, 37), 130: (13, 10)}


@pytest.mark.parametrize("dtype", triton_dtypes())
@EVERY_SIZE
@pytest.mark.parametrize(
    ("threshold", "step", "chunk", "pad"),
    [(0.8, 0.1, 16, True), (0.2, 0.05, 3, True), (0.3, 0.0, 5, False), (-9.0, 0.1, 1, True)],
)
def test_centrifugal_select(
    num_tokens: int,
    budget: int,
    threshold: float,
    step: float,
    chunk: int,
    pad: bool,
    dtype: torch.dtype,
) -> None:
    pivots = ranking(3, num_tokens, 4)
    arguments = (similarity(3, num_tokens, dtype), pivots, *GRIDS[num_tokens], budget)
    options = (0.5, threshold, step, chunk, pad)
    agree(centrifugal_select, ops.centrifugal_select.reference, *arguments, *options)


@pytest.mark.parametrize(
    ("budget", "threshold", "pad"), [*product((4, 60, 130), (0.25, 9.0), (True, False))]
)
def test_centrifugal_select_on_few_similarities(budget: int, threshold: float, pad: bool) -> None:
    # Quarters: most redundancies are ties, and a whole chunk may exceed what is left of the budget.
    matrix = whole_numbers(2, 130, 130) / 4
    matrix[0, 3], matrix[1, :, ::7] = float("nan"), float("nan")
    arguments = (matrix, ranking(2, 130, 4), 10, 13, budget, 0.25)
    options = (threshold, 0.125, 40, pad)
    agree(centrifugal_select, ops.centrifugal_select.reference, *arguments, *options)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize("pad", [True, False])
def test_tokens_that_are_nan_come_last(pad: bool, dtype: torch.dtype) -> None:
    for odd in ([7], [0, 4, 129], [*range(1, 129)]):
        matrix = similarity(2, 130, dtype)
        matrix[:, odd] = matrix[:, :, odd] = float("nan")
        # The least redundant of them is still behind the most redundant number.
        matrix[1, 12] = matrix[1, :, 12] = float("nan") if 12 in odd else float("inf")
        for pivots, budget in product(([[odd[0], 129]], [[129]]), (9, 131 - len(odd), 130)):
            for threshold in (9.0, 0.3, -9.0):
                first = torch.tensor(pivots * 2)
                arguments = (matrix, first, 13, 10, budget, 0.5, threshold, 0.05, 5, pad)
                agree(centrifugal_select, ops.centrifugal_select.reference, *arguments)


def test_thresholds_add_up_in_double() -> None:
    # A pick a pass, each just below its threshold, until one is just not.
    tenths = torch.arange(1, 11).double().div(10).float()
    for last in range(10):
        row = tenths.nextafter(torch.tensor(0.0))
        row[last] = tenths[last]
        matrix = torch.full((1, 11, 11), -1.0)
        matrix[0, 0, 1:] = torch.where(torch.arange(10) <= last, row, 5.0)
        arguments = (matrix, torch.tensor([[0]]), 1, 11, 11, 0.0, 0.1, 0.1, 4, False)
        agree(centrifugal_select, ops.centrifugal_select.reference, *arguments)


def test_a_pass_ends_where_its_first_chunk_has_no_pick() -> None:
    # One minus any of these is one, so the least redundant do not come first.
    matrix = torch.full((1, 12, 12), 2e-9)
    matrix[:, :, 8:] = 1e-10
    arguments = (matrix, torch.tensor([[0]]), 3, 4, 9, 0.0, 1e-9, 0.0)
    for chunk, pad in product((4, 8), (True, False)):
        agree(centrifugal_select, ops.centrifugal_select.reference, *arguments, chunk, pad)
