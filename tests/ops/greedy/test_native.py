"""The greedy selections on native CPU kernels: the reference's ids, ties and all."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops
from tests.cases import every_isa, outputs, random_tokens  # noqa: F401
from tests.ops.greedy.cases import assert_as_the_reference, problem, threads, tied_problem

pytestmark = pytest.mark.usefixtures("every_isa")

Arguments = tuple[Any, ...]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])

# B, N, T: one token, one pick, every token, sizes around whole vectors and blocks.
SHAPES = [(1, 1, 1), (2, 2, 2), (3, 17, 1), (2, 64, 33), (1, 65, 65), (2, 129, 40), (1, 577, 192)]


def farthest(similarity: Tensor, scores: Tensor, budget: int) -> Arguments:
    return 1 - similarity, None, budget


def farthest_from(similarity: Tensor, scores: Tensor, budget: int) -> Arguments:
    first = (torch.arange(len(similarity)) + similarity.shape[1] - 1) % similarity.shape[1]
    return 1 - similarity, first, budget, False


def pivots(similarity: Tensor, scores: Tensor, budget: int) -> Arguments:
    return similarity, budget


def weighted(similarity: Tensor, scores: Tensor, budget: int) -> Arguments:
    return similarity, scores, budget


def relevant(similarity: Tensor, scores: Tensor, budget: int) -> Arguments:
    return scores, similarity, budget, 0.3


def determinantal(similarity: Tensor, scores: Tensor, budget: int) -> Arguments:
    # Of full rank: past it rounding alone decides, PyTorch's own roots among it.
    return similarity + torch.eye(similarity.shape[1], dtype=similarity.dtype), scores, budget


def matched(similarity: Tensor, scores: Tensor, budget: int) -> Arguments:
    num_ranked = max(budget, similarity.shape[1] * 3 // 4)
    return similarity, scores.argsort(dim=1)[:, :num_ranked], budget, 3


def grid(num_tokens: int) -> tuple[int, int]:
    height = max(n for n in range(1, math.isqrt(num_tokens) + 1) if num_tokens % n == 0)
    return height, num_tokens // height


def expanded(similarity: Tensor, scores: Tensor, budget: int) -> Arguments:
    # More pivots than the budget where it is small.
    first = scores.argsort(dim=1, stable=True)[:, :3]
    return similarity, first, *grid(similarity.shape[1]), budget


def expanded_short(similarity: Tensor, scores: Tensor, budget: int) -> Arguments:
    first = scores.argsort(dim=1, stable=True)[:, :1]
    return similarity, first, *grid(similarity.shape[1]), budget, 0.7, 0.1, 0.02, 5, False


SELECTIONS: list[tuple[str, Callable[..., Arguments]]] = [
    ("farthest_select", farthest),
    ("farthest_select", farthest_from),
    ("pivot_select", pivots),
    ("dpp_select", determinantal),
    ("facility_select", weighted),
    ("match_select", matched),
    ("mmr_select", relevant),
    ("centrifugal_select", expanded),
    ("centrifugal_select", expanded_short),
]

EVERY = pytest.mark.parametrize(
    ("name", "arguments"), SELECTIONS, ids=[arguments.__name__ for _, arguments in SELECTIONS]
)


@EVERY
@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ids_are_the_references(
    name: str, arguments: Callable[..., Arguments], dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    batch, num_tokens, budget = shape
    assert_as_the_reference(name, arguments(*problem(batch, num_tokens, dtype), budget))


@EVERY
@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ties_are_the_references(
    name: str, arguments: Callable[..., Arguments], dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    batch, num_tokens, budget = shape
    assert_as_the_reference(name, arguments(*tied_problem(batch, num_tokens, dtype), budget))


@EVERY
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 0.5, math.nan, math.inf, -math.inf])
def test_a_matrix_of_one_value(
    name: str, arguments: Callable[..., Arguments], value: float
) -> None:
    scores = random_tokens(2, 35, seed=2).abs()
    assert_as_the_reference(name, arguments(torch.full((2, 35, 35), value), scores, 20))


@EVERY
def test_duplicates_go_to_the_lowest_id(name: str, arguments: Callable[..., Arguments]) -> None:
    tokens = random_tokens(2, 20, 8, seed=3, dtype=torch.float64).repeat(1, 2, 1)
    scores = torch.ones(2, 40, dtype=torch.float64)
    # Not by a product, which may round equal rows differently.
    unit = tokens / tokens.norm(dim=-1, keepdim=True)
    similarity = (unit[:, :, None] * unit[:, None]).sum(-1)
    assert torch.equal(similarity[:, :20], similarity[:, 20:])
    if arguments is determinantal:
        # A duplicate has nothing left to explain.
        assert_as_the_reference(name, (similarity, scores, 8))
    else:
        assert_as_the_reference(name, arguments(similarity, scores, 31))


@EVERY
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_tokens_that_are_no_numbers(
    name: str, arguments: Callable[..., Arguments], value: float
) -> None:
    similarity, scores = problem(3, 35, torch.float64)
    similarity[0, 4], similarity[1, :, 7] = value, value
    similarity[2, [3, 9], [30, 9]] = value
    # Where pivots are found they must be ids, so only these scores may be odd.
    if arguments in (weighted, relevant, determinantal):
        scores[:, 11] = value
    assert_as_the_reference(name, arguments(similarity, scores, 30))


@EVERY
def test_an_empty_batch(name: str, arguments: Callable[..., Arguments]) -> None:
    similarity, scores = problem(2, 30, torch.float32)
    assert_as_the_reference(name, arguments(similarity[:0], scores[:0], 7))


@EVERY
def test_views_of_any_strides(name: str, arguments: Callable[..., Arguments]) -> None:
    similarity, scores = problem(4, 33, torch.float64)
    similarity = similarity + similarity.roll(1, 2)
    padded = torch.full((4, 70, 80), math.nan, dtype=torch.float64)
    padded[:, :33, 7:40] = similarity
    wide = torch.full((8, 33, 2), math.nan, dtype=torch.float64)
    wide[::2, :, 1] = scores
    expected = outputs(getattr(ops, name)(*arguments(similarity, scores, 9)))
    for matrix in (
        padded[:, :33, 7:40],
        similarity.mT.contiguous().mT,
        similarity.transpose(0, 1).contiguous().transpose(0, 1),
    ):
        got = outputs(getattr(ops, name)(*arguments(matrix, wide[::2, :, 1], 9)))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    repeated = similarity[:1].expand(4, 33, 33), scores[:1].expand(4, 33)
    got = outputs(getattr(ops, name)(*arguments(*repeated, 9)))
    assert all((a[1:] == a[:1]).all() for a in got if arguments is not farthest_from)


@EVERY
@DTYPES
def test_batch_and_thread_invariant(
    name: str, arguments: Callable[..., Arguments], dtype: torch.dtype
) -> None:
    # Large enough that most divide an image among threads.
    similarity, scores = problem(3, 390, dtype)
    made = arguments(similarity, scores, 120)
    together = outputs(getattr(ops, name)(*made))
    for number in (1, 2, 5):
        with threads(number):
            for image in range(3):
                one = tuple(v[image : image + 1] if isinstance(v, Tensor) else v for v in made)
                alone = outputs(getattr(ops, name)(*one))
                assert all(
                    torch.equal(a[0], b[image]) for a, b in zip(alone, together, strict=True)
                )
            again = outputs(getattr(ops, name)(*made))
            assert all(torch.equal(a, b) for a, b in zip(again, together, strict=True))


@pytest.mark.parametrize("token", [-1, 30])
def test_ids_of_no_token_are_refused(token: int) -> None:
    similarity, _ = problem(1, 30, torch.float32)
    ids = torch.tensor([[2, token]])
    with pytest.raises(ValueError, match="first: expected ids of tokens"):
        ops.farthest_select(similarity, ids[:, 1], 3)
    with pytest.raises(ValueError, match="ranked: expected ids of tokens"):
        ops.match_select(similarity, ids, 1)
    with pytest.raises(ValueError, match="pivots: expected ids of tokens"):
        ops.centrifugal_select(similarity, ids, 5, 6, 3)
