"""Tokens that are NaN in the centrifugal expansion: no number loses its place to one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops
from ocvtp_kernels.selectors.similarity import cosine
from tests.cases import ISAS, instructions, random_tokens
from tests.ops.greedy.cases import similarity
from tests.ops.raw_calls import B, N, RawCall, ids, square

Function = Callable[..., tuple[Tensor, ...]]
NUM_TOKENS = 36
NAN_TOKENS = [[7], [0, 4, 35], [n for n in range(NUM_TOKENS) if n not in (11, 20)]]
# Threshold, its step and the chunk: all accepted, a few a pass, none.
PASSES = [(9.0, 0.1, 16), (0.3, 0.05, 5), (-9.0, 0.1, 1)]


def arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    pivots = torch.tensor([[3, 17, 29]]).repeat(batch, 1)
    return similarity(batch, 30, dtype, seed=4).mT, pivots, 5, 6, 11


RAW_CALLS = {
    "centrifugal_select": RawCall(
        square(
            "similarity",
            pivots=ids(B, 3),
            height=3,
            width=4,
            budget=8,
            spread=0.5,
            threshold=0.8,
            step=0.1,
            chunk=4,
            pad=True,
        ),
        {"similarity": ["dtype taken"], "pivots": ["size 1 *"]},
        {"height": (3, 3), "width": (4, 4), "budget": (0, N), "chunk": (1, None)},
        measures=("similarity",),
        cpu_only=True,
    ),
}


@pytest.fixture(params=["reference", *ISAS])
def select(request: pytest.FixtureRequest) -> Iterator[Function]:
    if request.param == "reference":
        yield ops.centrifugal_select.reference
    else:
        with instructions(request.param):
            yield ops.centrifugal_select


def with_nan(odd: list[int]) -> Tensor:
    """Cosines of tokens of which these are NaN."""
    tokens = random_tokens(2, NUM_TOKENS, 24, dtype=torch.float64)
    tokens[:, odd] = math.nan
    return cosine(tokens)


@pytest.mark.parametrize("odd", NAN_TOKENS, ids=len)
@pytest.mark.parametrize("passes", PASSES, ids=str)
@pytest.mark.parametrize("pad", [True, False])
def test_numbers_are_chosen_as_if_no_other_token_were_there(
    select: Function, odd: list[int], passes: tuple[float, float, int], pad: bool
) -> None:
    matrix = with_nan(odd)
    numbers = torch.tensor([n for n in range(NUM_TOKENS) if n not in odd])
    # Without a weight of the distance a grid may lose cells.
    options = (0.0, *passes, pad)
    for budget in {1, len(numbers) // 2 + 1, len(numbers)}:
        pivots = numbers[None, :1].expand(2, 1)
        whole = select(matrix, pivots, 6, 6, budget, *options)
        alone = select(
            matrix[:, numbers][:, :, numbers],
            torch.zeros_like(pivots),
            1,
            len(numbers),
            budget,
            *options,
        )
        order, count, assignment, max_similarity = whole
        assert torch.equal(order, torch.where(alone[0] < 0, -1, numbers[alone[0]]))
        assert torch.equal(count, alone[1])
        assert torch.equal(assignment[:, numbers], alone[2])
        assert torch.equal(max_similarity[:, numbers], alone[3])
        assert (assignment[:, odd] == -1).all() and (max_similarity[:, odd] == 0).all()


@pytest.mark.parametrize("odd", NAN_TOKENS, ids=len)
@pytest.mark.parametrize("passes", PASSES, ids=str)
def test_padding_comes_to_them_last_and_by_id(
    select: Function, odd: list[int], passes: tuple[float, float, int]
) -> None:
    matrix = with_nan(odd)
    numbers = [n for n in range(NUM_TOKENS) if n not in odd]
    for budget in range(len(numbers), NUM_TOKENS + 1):
        order, count, _assignment, _max_similarity = select(
            matrix, torch.full((2, 1), numbers[-1]), 6, 6, budget, 0.5, *passes
        )
        assert (order[:, : len(numbers)].sort(dim=1).values == torch.tensor(numbers)).all()
        assert order[:, len(numbers) :].tolist() == [odd[: budget - len(numbers)]] * 2
        assert (count <= len(numbers)).all()


@pytest.mark.parametrize("odd", NAN_TOKENS, ids=len)
@pytest.mark.parametrize("pad", [True, False])
def test_a_pivot_that_is_nan_counts_as_a_pick_alone(
    select: Function, odd: list[int], pad: bool
) -> None:
    matrix = with_nan(odd)
    number = 11
    options = (0.0, 0.3, 0.05, 5, pad)
    for budget in {2, 8, NUM_TOKENS - len(odd) + 1}:
        order, count, assignment, max_similarity = select(
            matrix, torch.tensor([[odd[0], number]] * 2), 6, 6, budget, *options
        )
        # Padding may come to tokens that are NaN, of which one is a pivot here.
        same = slice(0, NUM_TOKENS - len(odd))
        plain = select(matrix, torch.tensor([[number]] * 2), 6, 6, budget - 1, *options)
        assert (order[:, 0] == odd[0]).all()
        assert torch.equal(order[:, 1:][:, same], plain[0][:, same])
        assert torch.equal(count, plain[1] + 1)
        assert torch.equal(assignment, torch.where(plain[2] < 0, -1, plain[2] + 1))
        assert torch.equal(max_similarity, plain[3])


def test_a_number_that_is_most_redundant_comes_before_them(select: Function) -> None:
    # Its merit is -inf, the least that a number can have.
    matrix = torch.full((1, 6, 6), 0.5)
    matrix[0, :, 4] = matrix[0, 4] = math.inf
    matrix[0, :, 2] = matrix[0, 2] = math.nan
    order, count, assignment, max_similarity = select(
        matrix, torch.tensor([[0]]), 2, 3, 5, 0.5, 0.8
    )
    assert order.tolist() == [[0, 1, 3, 5, 4]] and count.tolist() == [4]
    assert assignment.tolist() == [[-1] * 6] and max_similarity.tolist() == [[0.0] * 6]


def test_of_nothing_but_nan_the_lowest_ids_are_picked(select: Function) -> None:
    matrix = torch.full((1, 6, 6), math.nan)
    order, count, assignment, max_similarity = select(matrix, torch.tensor([[3]]), 2, 3, 4)
    assert order.tolist() == [[3, 0, 1, 2]] and count.tolist() == [1]
    assert assignment.tolist() == [[-1] * 6] and max_similarity.tolist() == [[0.0] * 6]
    order, *_ = select(matrix, torch.tensor([[3]]), 2, 3, 4, pad=False)
    assert order.tolist() == [[3, -1, -1, -1]]
