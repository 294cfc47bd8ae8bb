"""Greedy selection in plain PyTorch, scores in float32 or wider."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ocvtp_kernels.dtypes import accumulate_dtype


def widened(function: Callable[..., Any]) -> Callable[..., Any]:
    """A reference, its floating tensors given to it in float32 or wider."""

    def run(*args: Any) -> Any:
        return function(*(_widen(value) for value in args))

    return run


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(accumulate_dtype(value.dtype))
    return value
