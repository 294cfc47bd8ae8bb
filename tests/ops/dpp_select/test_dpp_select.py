"""The determinantal selection on the native CPU kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ocvtp_kernels import ops
from tests.cases import every_isa, random_tokens  # noqa: F401
from tests.ops.greedy.cases import assert_as_the_reference, problem, similarity, threads
from tests.ops.raw_calls import B, N, RawCall, square

pytestmark = pytest.mark.usefixtures("every_isa")


def arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    # No more picks than the rank of the matrix: past it rounding alone decides.
    weight = random_tokens(batch, 30, seed=5, dtype=dtype).abs()
    return similarity(batch, 30, dtype, seed=4).mT, weight, 6


RAW_CALLS = {
    "dpp_select": RawCall(
        square("similarity", quality=random_tokens(B, N), budget=5),
        ranges={"budget": (0, N)},
        measures=("similarity",),
        cpu_only=True,
    ),
}


def test_a_dpp_of_low_rank_picks_each_direction_once() -> None:
    directions = torch.eye(5, dtype=torch.float64)[torch.arange(30) % 5]
    matrix = (directions @ directions.T).expand(2, 30, 30)
    arguments = matrix, torch.ones(2, 30, dtype=torch.float64), 12
    assert_as_the_reference("dpp_select", arguments)
    assert ops.dpp_select(*arguments)[0].tolist() == list(range(12))


def test_a_dpp_so_large_that_threads_share_its_steps() -> None:
    matrix, scores = problem(1, 1100, torch.float32)
    # Of full rank: past it rounding alone decides.
    made = matrix + torch.eye(1100), scores, 300
    with threads(1):
        alone = ops.dpp_select(*made)
    with threads(2):
        assert torch.equal(ops.dpp_select(*made), alone)
