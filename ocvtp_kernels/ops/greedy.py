"""What the greedy selections share: their checks, their native kernels and how they read a row.

Every selection reads a matrix of similarities or distances, ``[B, N, N]``, of which a step needs
one row: that of the token picked last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.triton_common.greedy_tiles import MAX_TOKENS


def take_row(matrix: Tensor, ids: Tensor) -> Tensor:
    """Row ``ids[b]`` of each image: ``[B, N, M]``, ``[B]`` -> ``[B, M]``."""
    return matrix[torch.arange(ids.shape[0], device=ids.device), ids]


def check_square(name: str, matrix: Tensor) -> None:
    """A floating matrix ``[B, N, N]`` of at least one token."""
    checks.require_rank(name, matrix, "B, N, N")
    checks.require_floating(name, matrix)
    checks.require_size(name, matrix, 2, matrix.shape[1], "dimension 1")
    checks.require_nonempty(name, matrix, 1, "token")


def check_ids(name: str, ids: Tensor, layout: str, other_name: str, other: Tensor) -> None:
    """Ids int64 of this layout, of as many images as ``other``."""
    checks.require_rank(name, ids, layout)
    if ids.dtype != torch.int64:
        raise TypeError(f"{name}: expected dtype torch.int64, got {ids.dtype}")
    checks.require_same_device(name, ids, other_name, other)
    checks.require_size(name, ids, 0, other.shape[0], other_name)


def require_ids(name: str, ids: Tensor, num_tokens: int) -> None:
    """Raises ValueError unless all ids are of tokens, as the native CPU kernels do.

    It reads values, which waits for any device but a CPU.
    """
    if ids.numel() == 0:
        return
    least, most = (int(bound) for bound in ids.aminmax())
    if least < 0 or most >= num_tokens:
        got = least if least < 0 else most
        raise ValueError(f"{name}: expected ids of tokens, 0 to {num_tokens - 1}, got {got}")


def fake_order(matrix: Tensor, budget: int) -> Tensor:
    """Ids in the order picked ``[B, T]``, without values."""
    return matrix.new_empty((matrix.shape[0], budget), dtype=torch.int64)


def too_many_tokens(matrix: Tensor) -> str | None:
    """Why the Triton kernels cannot hold as many tokens, or None."""
    if matrix.shape[1] <= MAX_TOKENS:
        return None
    limit = f"the triton greedy selections hold at most {MAX_TOKENS} tokens an image"
    return f"{limit}, not {matrix.shape[1]}"


def native_kernel(name: str) -> Callable[..., Any]:
    """The native CPU kernel of this name, of floating tensors in one dtype, float32 or wider."""

    def run(*args: Any) -> Any:
        is_floating = [isinstance(x, Tensor) and x.is_floating_point() for x in args]
        dtypes = [x.dtype for x, floats in zip(args, is_floating, strict=True) if floats]
        wide = torch.float64 if torch.float64 in dtypes else torch.float32
        cast = (x.to(wide) if floats else x for x, floats in zip(args, is_floating, strict=True))
        return getattr(torch.ops.ocvtp_native, name)(*cast)

    return run
