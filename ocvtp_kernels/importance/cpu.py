"""Attention received on the CPU: one head's map at a time, never all of them."""

from __future__ import annotations

from torch import Tensor

from ocvtp_kernels.dtypes import accumulate_dtype
from ocvtp_kernels.importance import reference


def attention_received(q: Tensor, k: Tensor, mode: str, scale: float | None = None) -> Tensor:
    """`reference.attention_received` with ``[B, M, N]`` in memory instead of ``[B, H, M, N]``."""
    wide = accumulate_dtype(q.dtype)
    num_heads = q.shape[1]
    total = q.new_zeros((q.shape[0], k.shape[2]), dtype=wide)
    for head in range(num_heads):
        one = slice(head, head + 1)
        total += reference.attention_received(q[:, one].to(wide), k[:, one].to(wide), mode, scale)
    return total / num_heads
