"""Facility location on the native CPU kernel."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.cases import every_isa, random_tokens  # noqa: F401
from tests.ops.greedy.cases import assert_as_the_reference, problem, similarity, tied_problem
from tests.ops.raw_calls import B, N, RawCall, square

pytestmark = pytest.mark.usefixtures("every_isa")


def arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    weight = random_tokens(batch, 30, seed=5, dtype=dtype).abs()
    return similarity(batch, 30, dtype, seed=4).mT, weight, 6


RAW_CALLS = {
    "facility_select": RawCall(
        square("similarity", saliency=random_tokens(B, N), budget=5),
        ranges={"budget": (0, N)},
        measures=("similarity",),
        cpu_only=True,
    ),
}


@pytest.mark.parametrize("value", [0.0, -0.5, math.nan, math.inf])
def test_facility_gains_that_may_grow(value: float) -> None:
    for matrix, scores in (
        problem(2, 35, torch.float64),
        tied_problem(2, 35, torch.float64),
        (torch.full((1, 9, 9), 1e308, dtype=torch.float64), torch.ones(1, 9).double()),
    ):
        scores[:, ::2] = value
        budget = matrix.shape[1]
        assert_as_the_reference("facility_select", (matrix, scores, budget))
        scores[:] = value
        assert_as_the_reference("facility_select", (matrix, scores, budget))
