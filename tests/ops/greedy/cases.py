"""Matrices for the greedy selections, and how a kernel is compared with its reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops
from ocvtp_kernels.dtypes import acc_dtype
from ocvtp_kernels.selectors.similarity import cosine
from tests.cases import outputs, random_tokens, to_device

Function = Callable[..., Any]
SIZES = ((1, 1), (2, 2), (5, 1), (37, 37), (130, 20))  # tokens, budget
EVERY_SIZE = pytest.mark.parametrize(("num_tokens", "budget"), SIZES)


def similarity(
    batch: int, num_tokens: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensor:
    """Of tokens, rows dense; no two alike but by rounding to ``dtype``."""
    return cosine(random_tokens(batch, num_tokens, 6, seed=seed)).to(dtype)


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
    got = outputs(kernel(*(to_device(a) if isinstance(a, Tensor) else a for a in arguments)))
    expected = outputs(plain(*(upcast(a) for a in arguments)))
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a.cpu(), b)


def problem(batch: int, num_tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines of random tokens, and positive scores."""
    tokens = random_tokens(batch, num_tokens, 24, seed=num_tokens, dtype=torch.float64) + 0.3
    scores = random_tokens(batch, num_tokens, seed=1, dtype=torch.float64).abs() + 0.1
    return cosine(tokens).to(dtype), scores.to(dtype)


def tied_problem(batch: int, num_tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A matrix and scores of few values: ties everywhere, and sums that do not round."""
    generator = torch.Generator().manual_seed(num_tokens)
    matrix = torch.randint(-2, 3, (batch, num_tokens, num_tokens), generator=generator)
    scores = torch.randint(0, 3, (batch, num_tokens), generator=generator)
    return matrix.to(dtype), scores.to(dtype)


def assert_as_the_reference(name: str, arguments: tuple[Any, ...]) -> None:
    """The op's outputs on the CPU are those of its reference, bit by bit."""
    op = getattr(ops, name)
    for got, expected in zip(
        outputs(op(*arguments)), outputs(op.reference(*arguments)), strict=True
    ):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert torch.equal(got, expected)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Within the block torch uses this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
