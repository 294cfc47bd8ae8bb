"""Argument checks shared by the ops, their fakes and the modules.

Each raises an error that names the argument, what came and what was expected. They read shapes,
dtypes and devices only, never values, so they cost no host sync and hold under tracing.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor


def require_rank(name: str, tensor: Tensor, layout: str) -> None:
    """Raises ValueError unless ``tensor`` has as many dimensions as ``layout`` names."""
    if tensor.dim() != layout.count(",") + 1:
        raise ValueError(f"{name}: expected shape [{layout}], got {list(tensor.shape)}")


def require_size(name: str, tensor: Tensor, dim: int, size: int, other_name: str) -> None:
    """Raises ValueError unless dimension ``dim`` equals ``size``, which ``other_name`` fixed."""
    if tensor.shape[dim] != size:
        raise ValueError(
            f"{name}: expected size {size} in dimension {dim} to match {other_name}, "
            f"got shape {list(tensor.shape)}"
        )


def require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless ``tensor`` has this shape."""
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")


def require_floating(name: str, tensor: Tensor) -> None:
    """Raises TypeError unless ``tensor`` is of a floating dtype."""
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{name}: expected a floating dtype, got {tensor.dtype}")


def require_same_dtype_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises TypeError or ValueError unless both tensors share dtype and device."""
    if tensor.dtype != other.dtype:
        raise TypeError(
            f"{name}: expected dtype {other.dtype} to match {other_name}, got {tensor.dtype}"
        )
    require_same_device(name, tensor, other_name, other)


def require_same_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises ValueError unless both tensors are on the same device."""
    if tensor.device != other.device:
        raise ValueError(
            f"{name}: expected device {other.device} to match {other_name}, got {tensor.device}"
        )


def require_nonempty(name: str, tensor: Tensor, dim: int, thing: str) -> None:
    """Raises ValueError unless dimension ``dim``, counting ``thing``, is at least 1."""
    if tensor.shape[dim] < 1:
        raise ValueError(f"{name}: expected at least one {thing}, got shape {list(tensor.shape)}")


def require_int(name: str, number: Any) -> None:
    """Raises TypeError unless ``number`` is whole, of Python, NumPy or traced, and no bool."""
    if isinstance(number, (int, torch.SymInt)) and not isinstance(number, bool):
        return
    if not isinstance(number, Integral) or isinstance(number, bool):
        raise TypeError(f"{name}: expected a whole number, got {number!r}")


def require_budget(budget: int, num_tokens: int) -> None:
    """Raises ValueError unless 1 <= budget <= num_tokens."""
    require_int("budget", budget)
    if budget < 1 or budget > num_tokens:
        raise ValueError(f"budget: expected 1 to {num_tokens} (the tokens there are), got {budget}")


def require_top_k(top_k: int, num_tokens: int) -> None:
    """Raises ValueError unless 1 <= top_k <= num_tokens."""
    require_int("top_k", top_k)
    if top_k < 1 or top_k > num_tokens:
        raise ValueError(f"top_k: expected 1 to {num_tokens} (the tokens there are), got {top_k}")


def require_at_least(name: str, number: int, minimum: int) -> None:
    """Raises TypeError unless ``number`` is an int, and ValueError if it is below ``minimum``."""
    require_int(name, number)
    if number < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {number}")


def whole_number(name: str, number: Any, minimum: int) -> int:
    """``number`` as an int; errors as `require_at_least`."""
    require_at_least(name, number, minimum)
    return int(number)


def require_one_of(name: str, value: object, options: Sequence[object]) -> None:
    """Raises ValueError unless ``value`` is one of ``options``."""
    if value not in options:
        raise ValueError(f"{name}: expected one of {tuple(options)}, got {value!r}")
