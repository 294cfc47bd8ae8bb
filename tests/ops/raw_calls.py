"""A valid call of a raw native op, and what may be done to its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.cases import random_tokens

B, K, N, D, E, H, M = 2, 3, 12, 8, 5, 2, 4
EPS = 1e-5
FLOATING = ["dtype float*", "dtype bfloat16"]
ROWS = ["rank *", "size *", "empty", "dtype multiplied"]


class RawCall(NamedTuple):
    """A valid call.

    Attributes:
        arguments: in the schema's order.
        valid: by argument, patterns of what may be done to it, see `test_native_arguments.spoilt`.
        ranges: least and most of the ints.
        measures: arguments by which others are measured, so that these may be named for them.
        cpu_only: the op has no CUDA kernel, so no schema in the emulated library either.
    """

    arguments: Mapping[str, Any]
    valid: Mapping[str, list[str]] = {}
    ranges: Mapping[str, tuple[int, int | None]] = {}
    measures: tuple[str, ...] = ()
    cpu_only: bool = False


def ids(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape) % N


def queries_keys(**others: Any) -> dict[str, Any]:
    q, k = random_tokens(B, K, D), random_tokens(B, N, D, seed=1)
    return {"q": q, "k": k, **others}


def square(name: str, **others: Any) -> dict[str, Any]:
    return {name: random_tokens(B, N, N).abs(), **others}


def picks_scores(**others: Any) -> dict[str, Any]:
    scores = {"peak": random_tokens(B, K), "importance": random_tokens(B, N)}
    return {"picks": ids(B, K, 2), **scores, **others}


PER_SLOT = {"constant": random_tokens(B, K, seed=2), "slot_mask": torch.ones(B, K) > 0}
SCALARS = {"scale": 0.3, "eps": EPS}
SCORES = {"peak": FLOATING, "importance": [*FLOATING, "none"]}
