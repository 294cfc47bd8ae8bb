"""Farthest-point selection: arguments for the tests that every op has to pass."""

from __future__ import annotations

from typing import Any

import torch

from tests.ops.greedy.cases import similarity
from tests.ops.raw_calls import B, N, RawCall, ids, square


def arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    return 1 - similarity(batch, 30, dtype, seed=4).mT, None, 9


RAW_CALLS = {
    "farthest_select": RawCall(
        square("distances", first=ids(B), budget=5, distinct=True),
        {"distances": ["dtype taken"], "first": ["none"]},
        {"budget": (1, N)},
        measures=("distances",),
        cpu_only=True,
    ),
}
