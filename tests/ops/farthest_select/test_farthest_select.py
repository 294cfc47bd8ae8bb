"""Farthest-point selection: arguments for the tests that every op has to pass."""

from __future__ import annotations

from typing import Any

import torch

from tests.ops.greedy.cases import similarity


def arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    return 1 - similarity(batch, 30, dtype, seed=4).mT, None, 9
