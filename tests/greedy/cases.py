"""Matrices for the greedy selections, and how a kernel is held against its reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels.dtypes import acc_dtype
from ocvtp_kernels.selectors.similarity import cosine
from tests.cases import random_tokens, to_device

Function = Callable[..., Any]
SIZES = ((1, 1), (2, 2), (5, 1), (37, 37), (130, 20))  # tokens, budget
EVERY_SIZE = pytest.mark.parametrize(("num_tokens", "budget"), SIZES)


def similarity(batch: int, num_tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of tokens, rows dense; no two alike but by rounding to ``dtype``."""
    return cosine(random_tokens(batch, num_tokens, 6)).to(dtype)


def scores(batch: int, num_tokens: int, seed: int = 5) -> Tensor:
    return random_tokens(batch, num_tokens, seed=seed).abs()


def whole_numbers(*shape: int, most: int = 4, seed: int = 0) -> Tensor:
    """So few of them that most are ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, most, shape, generator=generator).float()


def ranking(batch: int, num_tokens: int, kept: int) -> Tensor:
    return random_tokens(batch, num_tokens, seed=6).argsort(dim=1)[:, :kept]


def upcast(value: Any) -> Any:
    """A floating tensor in float32 or wider."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(acc_dtype(value.dtype))
    return value


def agree(kernel: Function, plain: Function, *arguments: Any) -> None:
    """All outputs are those of the reference, which computes in float32."""
    got = kernel(*(to_device(a) if isinstance(a, Tensor) else a for a in arguments))
    expected = plain(*(upcast(a) for a in arguments))
    if isinstance(expected, Tensor):
        got, expected = (got,), (expected,)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a.cpu(), b)
