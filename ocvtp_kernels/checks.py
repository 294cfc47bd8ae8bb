"""Argument checks shared by the ops, their fakes and the modules.

Each raises an error that names the argument, what came and what was expected. They read shapes,
dtypes and devices only, never values, so they cost no host sync and hold under tracing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

# The dtypes that are computed in; narrower ones are storage.
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def require_tensor(name: str, value: Any) -> None:
    """Raises TypeError unless ``value`` is a dense tensor: not sparse, nested or quantized."""
    _require_any_tensor(name, value)
    if value.layout is not torch.strided or value.is_nested or value.is_quantized:
        kind = f"one of layout {value.layout}"
        kind = "a nested one" if value.is_nested else kind
        kind = "a quantized one" if value.is_quantized else kind
        raise TypeError(f"{name}: expected a dense tensor, got {kind}")


def _require_any_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        kind = "None" if value is None else f"an object of type {type(value).__name__}"
        raise TypeError(f"{name}: expected a tensor, got {kind}")


def require_rank(name: str, tensor: Tensor, layout: str) -> None:
    """Raises unless ``tensor`` is a dense tensor of as many dimensions as ``layout`` names."""
    require_tensor(name, tensor)
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
    """Raises TypeError unless ``tensor`` is of a floating dtype of 16 bits or more."""
    if tensor.dtype not in FLOATING:
        raise TypeError(
            f"{name}: expected a floating dtype of 16, 32 or 64 bits, got {tensor.dtype}"
        )


def require_same_dtype_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises TypeError or ValueError unless both tensors share dtype and device."""
    _require_any_tensor(name, tensor)
    if tensor.dtype != other.dtype:
        raise TypeError(
            f"{name}: expected dtype {other.dtype} to match {other_name}, got {tensor.dtype}"
        )
    _require_same_device(name, tensor, other_name, other)


def require_same_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises ValueError unless both tensors are on the same device."""
    _require_any_tensor(name, tensor)
    _require_same_device(name, tensor, other_name, other)


def _require_same_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
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


def require_number(name: str, number: Any) -> None:
    """Raises TypeError unless ``number`` is real, of Python, NumPy or traced, and no bool."""
    if isinstance(number, (float, torch.SymFloat)):
        return
    if not isinstance(number, (Real, torch.SymInt)) or isinstance(number, bool):
        raise TypeError(f"{name}: expected a number, got {number!r}")


def require_between(name: str, number: float, least: float, most: float) -> None:
    """Raises TypeError unless ``number`` is one, and ValueError unless least <= it <= most."""
    require_number(name, number)
    if not least <= number <= most:
        limits = f"{least:g} to {most:g}" if most < math.inf else f"at least {least:g}"
        raise ValueError(f"{name}: expected {limits}, got {number}")


def require_bool(name: str, value: Any) -> None:
    """Raises TypeError unless ``value`` is a bool, of Python, NumPy or traced."""
    # NumPy registers its whole and real numbers with Python's kinds, but not its bools.
    of_numpy = type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_")
    if not (isinstance(value, (bool, torch.SymBool)) or of_numpy):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


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
    # A comparison with a tensor or an array would be one itself.
    if not isinstance(value, (str, type(None))) or value not in options:
        raise ValueError(f"{name}: expected one of {tuple(options)}, got {value!r}")
