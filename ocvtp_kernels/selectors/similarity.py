"""The matrices that greedy selection reads."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.dtypes import acc_dtype

# Tokens from which on a CPU multiplies only half of a symmetric matrix. Blocks of a few rows may be
# summed in another order, and equal tokens would no longer be equally similar.
LEAST_HALVED = 256


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
    unit = tokens.to(wide) / norms
    if tokens.is_cuda or tokens.shape[1] < LEAST_HALVED:
        return torch.bmm(unit, unit.transpose(1, 2))
    return _products(unit)


def _products(rows: Tensor) -> Tensor:
    """Products of every two rows, ``[B, N, C]`` -> ``[B, N, N]``, each pair's computed once.

    What stands below the blocks on the diagonal is copied from above them: of four blocks a side,
    ten products instead of sixteen.
    """
    batch, num_rows, _ = rows.shape
    products = rows.new_empty((batch, num_rows, num_rows))
    size = (num_rows + 3) // 4
    for block in range(4):
        start, stop = block * size, (block + 1) * size
        right = torch.bmm(rows[:, start:stop], rows[:, start:].transpose(1, 2))
        products[:, start:stop, start:] = right
        products[:, stop:, start:stop] = right[:, :, size:].transpose(1, 2)
    return products
