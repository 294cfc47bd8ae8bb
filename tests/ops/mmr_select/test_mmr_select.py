"""Maximal marginal relevance: its formula written out, and numbers that are not finite."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops
from tests.cases import every_isa, random_tokens  # noqa: F401
from tests.ops.greedy.cases import assert_as_the_reference, problem, similarity
from tests.ops.mmr_select.cases import TRADE_OFFS, spoilt
from tests.ops.raw_calls import B, N, RawCall, square

pytestmark = pytest.mark.usefixtures("every_isa")

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
OP_AND_REFERENCE = pytest.mark.parametrize(
    "select", [ops.mmr_select, ops.mmr_select.reference], ids=["op", "reference"]
)


def arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    relevance = random_tokens(batch, 30, seed=5, dtype=dtype)
    return relevance, similarity(batch, 30, dtype, seed=4).mT, 9, 0.3


RAW_CALLS = {
    "mmr_select": RawCall(
        {
            "relevance": random_tokens(B, N),
            **square("similarity", budget=5, trade_off=0.3),
        },
        ranges={"budget": (1, N)},
        measures=("similarity",),
        cpu_only=True,
    ),
}


def written_out(
    relevance: list[float], similarity: list[list[float]], budget: int, trade_off: float
) -> tuple[list[int], float]:
    """The picks of one image, and by how much the closest of them was decided."""
    picks: list[int] = []
    margin = math.inf
    while len(picks) < budget:
        scores = {}
        for token in set(range(len(relevance))) - set(picks):
            if picks:
                most = max(similarity[pick][token] for pick in picks)
                scores[token] = trade_off * relevance[token] - (1 - trade_off) * most
            else:
                scores[token] = relevance[token]
        first, *others = sorted(scores, key=scores.__getitem__, reverse=True)
        if others:
            margin = min(margin, scores[first] - scores[others[0]])
        picks.append(first)
    return picks, margin


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_its_formula(dtype: torch.dtype) -> None:
    checked = 0
    for seed in itertools.count():
        generator = torch.Generator().manual_seed(seed)
        num_tokens, trade_off = 1 + seed % 23, float(torch.rand((), generator=generator))
        budget = int(torch.randint(1, num_tokens + 1, (), generator=generator))
        relevance = torch.rand(2, num_tokens, generator=generator).to(dtype)
        # Of no symmetry: the row is the pick's.
        matrix = torch.randn(2, num_tokens, num_tokens, generator=generator).to(dtype)
        expected = [
            written_out(of.tolist(), to.tolist(), budget, trade_off)
            for of, to in zip(relevance, matrix, strict=True)
        ]
        if min(margin for _, margin in expected) < 1e-5:
            continue
        got = ops.mmr_select(relevance, matrix, budget, trade_off)
        assert (got.dtype, got.tolist()) == (torch.int64, [picks for picks, _ in expected]), seed
        wide = (x.to(torch.float64) for x in (relevance, matrix))
        assert torch.equal(got, ops.mmr_select.reference(*wide, budget, trade_off))
        checked += 1
        if checked == 60:
            break
        assert seed < 600, "most cases were ties"


@OP_AND_REFERENCE
def test_a_product_of_relevance_and_a_falling_function(select: Any) -> None:
    """``relevance * f(max similarity)`` is this of logarithms."""
    matrix, relevance = problem(2, 37, torch.float64)
    taken = torch.zeros_like(relevance, dtype=torch.bool)
    order = [relevance.argmax(1)]
    most = torch.full_like(relevance, -math.inf)
    for _ in range(14):
        taken.scatter_(1, order[-1][:, None], True)
        most = torch.maximum(most, matrix[torch.arange(2), order[-1]])
        order.append((relevance * (1.5 - most)).masked_fill(taken, -1).argmax(1))
    got = select(relevance.log(), -(1.5 - matrix).log(), 15)
    assert torch.equal(got, torch.stack(order, dim=1))


@OP_AND_REFERENCE
def test_ties_and_duplicates_go_to_the_lowest_id(select: Any) -> None:
    # Two of each kind: 0 and 1 alike, 2 and 3 alike.
    kind = torch.tensor([0, 0, 1, 1])
    matrix = (kind[:, None] == kind).float()[None]
    assert select(torch.ones(1, 4), matrix, 4).tolist() == [[0, 2, 1, 3]]
    assert select(torch.tensor([[1.0, 1, 3, 3]]), matrix, 4).tolist() == [[2, 3, 0, 1]]
    assert select(torch.tensor([[1.0, 1, 1.5, 1.5]]), matrix, 4).tolist() == [[2, 0, 3, 1]]


def test_the_weight_of_relevance() -> None:
    matrix, relevance = problem(2, 40, torch.float32)
    by_relevance = relevance.argsort(dim=1, descending=True, stable=True)
    assert torch.equal(ops.mmr_select(relevance, matrix, 40, 1.0), by_relevance)
    farthest = ops.farthest_select(-matrix, by_relevance[:, 0], 40)
    assert torch.equal(ops.mmr_select(relevance, matrix, 40, 0.0), farthest)
    assert torch.equal(
        ops.mmr_select(relevance, matrix, 40), ops.mmr_select(relevance, matrix, 40, 0.5)
    )


NAN, INF = math.nan, math.inf


@OP_AND_REFERENCE
@pytest.mark.parametrize(
    ("trade_off", "expected"),
    [
        # The infinite one first; of the others NaN and -inf are alike, and come last.
        (0.5, [2, 4, 1, 0, 3]),
        # Relevance makes the first pick alone.
        (0.0, [2, 0, 1, 3, 4]),
        (1.0, [2, 4, 1, 0, 3]),
    ],
)
def test_relevance_that_is_not_finite(select: Any, trade_off: float, expected: list[int]) -> None:
    relevance = torch.tensor([[NAN, 1, INF, -INF, 2]])
    assert select(relevance, torch.zeros(1, 5, 5), 5, trade_off).tolist() == [expected]


@OP_AND_REFERENCE
@pytest.mark.parametrize(
    ("value", "trade_off", "expected"),
    [
        # What the first pick says of the second token makes it the last, or the next.
        (NAN, 0.5, [0, 2, 3, 1]),
        (INF, 0.5, [0, 2, 3, 1]),
        (-INF, 0.5, [0, 1, 2, 3]),
        # Similarity is not asked.
        (NAN, 1.0, [0, 2, 3, 1]),
        (-INF, 1.0, [0, 2, 3, 1]),
    ],
)
def test_similarity_that_is_not_finite(
    select: Any, value: float, trade_off: float, expected: list[int]
) -> None:
    matrix = torch.zeros(1, 4, 4)
    matrix[0, 0, 1] = value
    relevance = torch.tensor([[4.0, 1, 3, 2]])
    assert select(relevance, matrix, 4, trade_off).tolist() == [expected]


@OP_AND_REFERENCE
def test_infinities_that_cancel_come_last(select: Any) -> None:
    relevance = torch.tensor([[-INF, 3.0, INF, INF, 2.0]])
    matrix = torch.zeros(1, 5, 5)
    # Both tokens are inf - inf.
    matrix[0, :, 0], matrix[0, :, 3] = -INF, INF
    assert select(relevance, matrix, 5).tolist() == [[2, 1, 4, 0, 3]]


@pytest.mark.parametrize("trade_off", TRADE_OFFS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_numbers_that_are_not_finite_are_the_references(
    trade_off: float, dtype: torch.dtype
) -> None:
    for seed in range(12):
        relevance, matrix = spoilt(2, 37, seed)
        got = ops.mmr_select(relevance.to(dtype), matrix.to(dtype), 37, trade_off)
        assert torch.equal(got.sort().values, torch.arange(37).expand(2, -1))
        assert_as_the_reference(
            "mmr_select", (relevance.to(dtype), matrix.to(dtype), 37, trade_off)
        )


def test_floating_arguments_of_two_dtypes_meet_in_the_wider() -> None:
    matrix, relevance = problem(2, 35, torch.float64)
    for of, to in ((torch.float32, torch.float64), (torch.float64, torch.bfloat16)):
        mixed = relevance.to(of), matrix.to(to)
        expected = ops.mmr_select(*(x.double() for x in mixed), 35, 0.4)
        assert torch.equal(ops.mmr_select(*mixed, 35, 0.4), expected)
        assert torch.equal(ops.mmr_select.reference(*mixed, 35, 0.4), expected)


def test_an_image_of_a_batch_is_picked_as_alone() -> None:
    matrix, relevance = problem(5, 67, torch.float32)
    together = ops.mmr_select(relevance, matrix, 67, 0.6)
    for image in range(5):
        one: Tensor = ops.mmr_select(
            relevance[image : image + 1], matrix[image : image + 1], 67, 0.6
        )
        assert torch.equal(one[0], together[image])


@pytest.mark.parametrize("trade_off", [-0.1, 1.0001, math.nan, math.inf])
def test_weights_out_of_range_are_named(trade_off: float) -> None:
    with pytest.raises(ValueError, match=r"^trade_off: expected 0 to 1, got "):
        ops.mmr_select(torch.ones(1, 3), torch.ones(1, 3, 3), 2, trade_off)


@pytest.mark.parametrize(
    ("relevance", "matrix", "budget", "name"),
    [
        ((1, 3), (1, 3, 4), 2, "similarity"),
        ((1, 4), (1, 3, 3), 2, "relevance"),
        ((2, 3), (1, 3, 3), 2, "relevance"),
        ((1, 0), (1, 0, 0), 1, "similarity"),
        ((1, 3), (1, 3, 3), 0, "budget"),
        ((1, 3), (1, 3, 3), 4, "budget"),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    relevance: tuple[int, ...], matrix: tuple[int, ...], budget: int, name: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected "):
        ops.mmr_select(torch.ones(relevance), torch.ones(matrix), budget)
