"""Pivots on the native CPU kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.cases import every_isa, random_tokens  # noqa: F401
from tests.ops.greedy.cases import assert_as_the_reference
from tests.ops.raw_calls import B, D, N, RawCall

pytestmark = pytest.mark.usefixtures("every_isa")


def arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    return random_tokens(batch, 31, 10, dtype=dtype)[:, 1:], 4


RAW_CALLS = {
    "pivot_select": RawCall(
        {"points": random_tokens(B, N, D), "budget": 5},
        {"points": ["size 0 *", "size 1 [-+]*", "size 2 *", "dtype taken"]},
        {"budget": (0, N)},
        measures=("points",),
        cpu_only=True,
    ),
}


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 9, 5, 9), (1, 577, 70, 6), (2, 40, 1000, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pivots_of_points(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    batch, num_tokens, width, budget = shape
    points = random_tokens(batch, num_tokens, width, dtype=dtype, outliers=True)
    assert_as_the_reference("pivot_select", (points, budget))
    # Sums of whole numbers are exact, and often equal.
    assert_as_the_reference("pivot_select", (points.clamp(-2, 2).round(), budget))
