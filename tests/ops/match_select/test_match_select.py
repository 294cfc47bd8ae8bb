"""Bipartite matching: arguments for the tests that every op has to pass."""

from __future__ import annotations

from typing import Any

import torch

from tests.ops.greedy.cases import similarity
from tests.ops.raw_calls import B, N, RawCall, ids, square


def arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(6)
    ranked = torch.rand(batch, 30, generator=generator).argsort(dim=1)[:, :23]
    return similarity(batch, 30, dtype, seed=4).mT, ranked, 6, 4


RAW_CALLS = {
    "match_select": RawCall(
        square("similarity", ranked=ids(B, N), budget=5, drop=2),
        {"similarity": ["dtype taken"], "ranked": ["size 1 [-+]*"]},
        {"budget": (0, N), "drop": (1, None)},
        measures=("similarity", "ranked"),
        cpu_only=True,
    ),
}
