"""Attention received on the CPU: one head's map at a time, or as many as are small together."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.dtypes import accumulate_dtype, product_dtype
from ocvtp_kernels.ops.attention_received.reference import QUERY_ROW

SMALL = 1 << 18  # elements of maps that are not worth a call for each


def attention_received(q: Tensor, k: Tensor, mode: str, scale: float | None = None) -> Tensor:
    """`reference.attention_received`, with no more than one large map of a head in memory."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if mode in QUERY_ROW:
        # The maps are a row each, and no copy of all keys is worth a wider product.
        row = QUERY_ROW[mode] % q.shape[2]
        return _shares(q[:, :, row : row + 1], k, scale).mean((1, 2))
    dtype = product_dtype(q.dtype, q.device)
    heads = max(1, SMALL // max(1, q.shape[0] * q.shape[2] * k.shape[2]))
    sums = [
        _shares(some_q.to(dtype), some_k.to(dtype), scale).sum((1, 2))
        for some_q, some_k in zip(q.split(heads, 1), k.split(heads, 1), strict=True)
    ]
    return sum(sums[1:], sums[0]) / (q.shape[1] * q.shape[2])


def _shares(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """The map of queries by keys, wide whatever the product is in."""
    logits = torch.matmul(q, k.mT).to(accumulate_dtype(q.dtype))
    return logits.mul_(scale).softmax(-1)
