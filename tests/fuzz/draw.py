"""All random choices of one case."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
# One, primes, whole vectors and tiles, and what is beside them.
SIZES = (1, 2, 3, 5, 7, 8, 9, 13, 16, 17, 31, 32, 33)
LARGE_SIZES = (61, 64, 65, 97, 127, 128, 129, 257)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Draw(random.Random):
    """The choices that follow from a seed and a case's number."""

    def __init__(self, seed: int, case: int) -> None:
        super().__init__(f"{seed}/{case}")
        self.generator = torch.Generator().manual_seed(self.getrandbits(63))

    def chance(self, share: float) -> bool:
        return self.random() < share

    def size(self) -> int:
        return self.choice(LARGE_SIZES if self.chance(0.08) else SIZES)

    def batch(self) -> int:
        return self.choice((0, 1, 1, 2, 2, 3))

    def dtype(self) -> torch.dtype:
        return self.choices(DTYPES, (5, 2, 2, 2))[0]

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return values.to(dtype)

    def any_of(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Numbers of any dtype, whole where it has no others."""
        if dtype.is_floating_point and dtype in DTYPES:
            return self.normal(*shape, dtype=dtype)
        return torch.randint(0, 100, shape, generator=self.generator).to(dtype)

    def ids(self, *shape: int, below: int) -> Tensor:
        """int64, distinct in a row while there are enough."""
        *rows, count = shape or (1,)
        if not shape or count > below or below == 0:
            return torch.randint(0, max(1, below), shape, generator=self.generator)
        order = torch.rand((*rows, below), generator=self.generator).argsort(dim=-1)
        return order[..., :count].contiguous()

    def weighted(self, table: Mapping[T, int]) -> T:
        return self.choices(list(table), list(table.values()))[0]

    def mask(self, shape: torch.Size, share: float) -> Tensor:
        return torch.rand(shape, generator=self.generator) < share


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for one in value for tensor in tensors_of(one)]
    return []


def map_tensors(function: Any, value: Any) -> Any:
    """Applies ``function`` to every tensor of nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: map_tensors(function, one) for name, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, one) for one in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(function, one) for one in value)
    return value


def has_memory(tensor: Any) -> bool:
    """Whether it is a dense tensor on the CPU."""
    if not isinstance(tensor, Tensor):
        return False
    plain = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized
    return plain and tensor.device.type == "cpu"
