"""The greedy kernels beside the reference: ids equal, ties and NaN included."""

from __future__ import annotations

import math

import pytest
import torch

from ocvtp_kernels import ops
from ocvtp_kernels.selectors.similarity import cosine
from tests.cases import DEVICE, random_tokens
from tests.ops.greedy.cases import (
    EVERY_SIZE,
    Function,
    agree,
    ranking,
    scores,
    similarity,
    whole_numbers,
)

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.centrifugal_select.triton import centrifugal_select
from ocvtp_kernels.ops.dpp_select.triton import dpp_select
from ocvtp_kernels.ops.facility_select.triton import facility_select
from ocvtp_kernels.ops.farthest_select.triton import farthest_select
from ocvtp_kernels.ops.match_select.triton import match_select
from ocvtp_kernels.ops.mmr_select.triton import mmr_select
from ocvtp_kernels.ops.pivot_select.triton import pivot_select

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]


@EVERY_SIZE
def test_ties_go_to_the_lowest_id(num_tokens: int, budget: int) -> None:
    matrix = whole_numbers(2, num_tokens, num_tokens)
    weight = whole_numbers(2, num_tokens, most=3, seed=1)
    agree(farthest_select, ops.farthest_select.reference, matrix, None, budget)
    agree(farthest_select, ops.farthest_select.reference, matrix, None, budget, False)
    agree(facility_select, ops.facility_select.reference, matrix, weight, budget)
    agree(facility_select, ops.facility_select.reference, -matrix, weight, budget)
    agree(dpp_select, ops.dpp_select.reference, matrix, weight, budget)
    agree(mmr_select, ops.mmr_select.reference, weight, matrix, budget)
    points = whole_numbers(2, num_tokens, 2)
    agree(pivot_select, ops.pivot_select.reference, points, min(budget, 5))
    agree(match_select, ops.match_select.reference, matrix, ranking(2, num_tokens, 99), budget, 3)


@pytest.mark.parametrize(("num_tokens", "budget"), [(2, 2), (17, 12)])
def test_all_tokens_alike(num_tokens: int, budget: int) -> None:
    for value in (0.0, 1.0, float("nan"), math.inf, -math.inf):
        matrix, weight = torch.full((1, num_tokens, num_tokens), value), torch.ones(1, num_tokens)
        for arguments in ((matrix, None, budget), (matrix, None, budget, False)):
            agree(farthest_select, ops.farthest_select.reference, *arguments)
        agree(mmr_select, ops.mmr_select.reference, weight, matrix, budget)
        agree(pivot_select, ops.pivot_select.reference, matrix, budget)
        agree(dpp_select, ops.dpp_select.reference, matrix, weight, budget)
        agree(facility_select, ops.facility_select.reference, matrix, weight, budget)


@EVERY_SIZE
def test_a_nan_never_beats_a_number(num_tokens: int, budget: int) -> None:
    matrix, weight = similarity(2, num_tokens), scores(2, num_tokens)
    matrix[0, ::3], matrix[1, :, ::5] = float("nan"), float("nan")
    weight[:, ::4] = float("nan")
    agree(farthest_select, ops.farthest_select.reference, 1 - matrix, None, budget)
    agree(facility_select, ops.facility_select.reference, matrix, weight, budget)
    agree(mmr_select, ops.mmr_select.reference, weight, matrix, budget)
    agree(match_select, ops.match_select.reference, matrix, ranking(2, num_tokens, 99), budget)
    full = cosine(random_tokens(2, num_tokens, num_tokens))
    full[0, ::3], full[1, :, ::5] = float("nan"), float("nan")
    agree(dpp_select, ops.dpp_select.reference, full, weight, budget)
    points = random_tokens(2, num_tokens, 40)
    points[0, ::3], points[1, :, 7] = float("nan"), float("nan")
    agree(pivot_select, ops.pivot_select.reference, points, min(budget, 5))


def test_duplicates_are_explained_at_once() -> None:
    matrix = cosine(random_tokens(2, 20, 15).repeat_interleave(2, dim=1))
    weight = torch.ones(2, 40)
    agree(dpp_select, ops.dpp_select.reference, matrix, weight, 15)
    agree(facility_select, ops.facility_select.reference, matrix, weight, 40)
    agree(farthest_select, ops.farthest_select.reference, 1 - matrix, None, 40)
    agree(mmr_select, ops.mmr_select.reference, weight, matrix, 40)
    agree(pivot_select, ops.pivot_select.reference, matrix, 6)


@pytest.mark.parametrize(
    "name", ["farthest", "pivot", "dpp", "facility", "match", "mmr", "centrifugal"]
)
def test_batch_invariant(name: str) -> None:
    matrix, weight = similarity(3, 37).to(DEVICE), scores(3, 37).to(DEVICE)
    ranked = ranking(3, 37, 30).to(DEVICE)
    runs: dict[str, Function] = {
        "farthest": lambda here: farthest_select(1 - matrix[here], None, 9),
        "pivot": lambda here: pivot_select(matrix[here], 9),
        "dpp": lambda here: dpp_select(matrix[here], weight[here], 6),
        "facility": lambda here: facility_select(matrix[here], weight[here], 9),
        "match": lambda here: match_select(matrix[here], ranked[here], 9, 4),
        "mmr": lambda here: mmr_select(weight[here], matrix[here], 9, 0.3),
        "centrifugal": lambda here: centrifugal_select(matrix[here], ranked[here, :3], 1, 37, 9)[0],
    }
    run = runs[name]
    batched = run(slice(None))
    for image in range(3):
        assert torch.equal(run(slice(image, image + 1))[0], batched[image])
    assert run(slice(0)).shape == (0, *batched.shape[1:])


def test_any_strides() -> None:
    base = similarity(2, 40)
    views = [
        base.transpose(1, 2)[:, 3:, 3:],
        base[:, ::2, ::2],
        base[:, 1:, 1:],
        base[:1].expand(2, -1, -1),
    ]
    weights = torch.stack([scores(2, 40), scores(2, 40, 6)], dim=2)
    for matrix in views:
        size = matrix.shape[1]
        agree(farthest_select, ops.farthest_select.reference, 1 - matrix, None, 9)
        agree(pivot_select, ops.pivot_select.reference, matrix, 4)
        arguments = (matrix, weights[:, :size, 1], 5)
        agree(dpp_select, ops.dpp_select.reference, *arguments)
        agree(facility_select, ops.facility_select.reference, *arguments)
        agree(mmr_select, ops.mmr_select.reference, weights[:, :size, 1], matrix, 9, 0.3)
        agree(match_select, ops.match_select.reference, matrix, ranking(2, size, size), 5)
        agree(
            centrifugal_select,
            ops.centrifugal_select.reference,
            matrix,
            ranking(2, size, 3),
            1,
            size,
            9,
        )
