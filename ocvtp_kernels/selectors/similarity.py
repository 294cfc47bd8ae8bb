"""What tokens are compared by."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.dtypes import acc_dtype

# Tokens from which on a CPU multiplies only half of a symmetric matrix. Blocks of a few rows may be
# summed in another order, and equal tokens would no longer be equally similar.
LEAST_HALVED = 256
ROUNDING = 64  # units in the last place of two squared norms, which no distance is below


def cosine(tokens: Tensor, eps: float = 0.0) -> Tensor:
    """Cosine similarity of every two tokens of an image.

    Args:
        tokens: ``[B, N, C]``.
        eps: least norm; with 0 a token of zeros is similar to nothing, NaN.

    Returns:
        ``[B, N, N]``, float32 or wider.
    """
    wide = acc_dtype(tokens.dtype)
    norms = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True, dtype=wide).clamp_min(eps)
    if tokens.is_cuda and tokens.dtype != wide:
        # Half tokens multiply on tensor cores, exactly, into float32 sums.
        products = torch.bmm(tokens, tokens.transpose(1, 2), out_dtype=wide)
        return products / norms / norms.transpose(1, 2)
    return _products(tokens.to(wide) / norms)


def squared_distances(tokens: Tensor) -> Tensor:
    """Squared Euclidean distances of every two tokens of an image.

    Args:
        tokens: ``[B, N, C]``.

    Returns:
        ``[B, N, N]``, float32 or wider; NaN of tokens that are not finite, and 0 of those that are
        equal, or as good as.
    """
    products = _products(tokens.to(acc_dtype(tokens.dtype)))
    norms = products.diagonal(dim1=1, dim2=2)
    norms = norms[:, :, None] + norms[:, None]
    squares = norms - 2 * products
    return squares.masked_fill(squares <= ROUNDING * torch.finfo(norms.dtype).eps * norms, 0)


def _products(rows: Tensor) -> Tensor:
    """Products of every two rows, ``[B, N, C]`` -> ``[B, N, N]``, each pair's computed once.

    What stands below the blocks on the diagonal is copied from above them: of four blocks a side,
    ten products instead of sixteen.
    """
    batch, num_rows, _ = rows.shape
    if rows.is_cuda or num_rows < LEAST_HALVED:
        return torch.bmm(rows, rows.transpose(1, 2))
    products = rows.new_empty((batch, num_rows, num_rows))
    size = (num_rows + 3) // 4
    for block in range(4):
        start, stop = block * size, (block + 1) * size
        right = torch.bmm(rows[:, start:stop], rows[:, start:].transpose(1, 2))
        products[:, start:stop, start:] = right
        products[:, stop:, start:stop] = right[:, :, size:].transpose(1, 2)
    return products


def mean_over_heads(keys: Tensor, heads: int | None) -> Tensor:
    """Keys averaged over heads, in float32 or wider: ``[B, N, D]`` -> ``[B, N, D / heads]``.

    Args:
        keys: heads side by side.
        heads: None if they are averaged already; they are returned as they are then.

    Raises:
        ValueError: they are no such heads.
    """
    if heads is None:
        return keys
    width = keys.shape[2]
    if width % heads:
        raise ValueError(f"keys: expected a width of {heads} heads, got {width}")
    return keys.to(acc_dtype(keys.dtype)).unflatten(-1, (heads, -1)).mean(dim=2)
