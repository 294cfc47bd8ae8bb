"""The matrices that greedy selection reads."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.dtypes import accumulate_dtype


def cosine(tokens: Tensor, eps: float = 0.0) -> Tensor:
    """Cosine similarity of every two tokens of an image.

    Args:
        tokens: ``[B, N, C]``.
        eps: least norm; with 0 a token of zeros is similar to nothing, NaN.

    Returns:
        ``[B, N, N]``, float32 or wider.
    """
    wide = accumulate_dtype(tokens.dtype)
    norms = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True, dtype=wide).clamp_min(eps)
    if tokens.is_cuda and tokens.dtype != wide:
        # Half tokens multiply on tensor cores, exactly, into float32 sums.
        products = torch.bmm(tokens, tokens.transpose(1, 2), out_dtype=wide)
        return products / norms / norms.transpose(1, 2)
    unit = tokens.to(wide) / norms
    return torch.bmm(unit, unit.transpose(1, 2))
