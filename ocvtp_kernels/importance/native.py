"""Attention received on the native kernels: C++ on the CPU, CUDA C++ on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.importance.reference import QUERY_ROW
from ocvtp_kernels.native import computed

EVERY_ROW = -1


def attention_received(q: Tensor, k: Tensor, mode: str, scale: float | None = None) -> Tensor:
    """`ocvtp_kernels.importance.reference.attention_received`, never ``[B, H, M, N]`` in memory."""
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    row = QUERY_ROW[mode] % q.shape[2] if mode in QUERY_ROW else EVERY_ROW
    received: Tensor = torch.ops.ocvtp_native.attention_received(
        computed(q), computed(k), row, scale
    )
    return received
