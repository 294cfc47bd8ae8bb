"""Attention received on the native kernels: C++ on the CPU, CUDA C++ on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.native import computed
from ocvtp_kernels.ops.attention_received.reference import QUERY_ROW

EVERY_ROW = -1
HALF = (torch.float16, torch.bfloat16)


def attention_received(q: Tensor, k: Tensor, mode: str, scale: float | None = None) -> Tensor:
    """`ocvtp_kernels.ops.attention_received.reference.attention_received`, never ``[B, H, M, N]`` in memory."""
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    row = QUERY_ROW[mode] % q.shape[2] if mode in QUERY_ROW else EVERY_ROW
    received: Tensor = torch.ops.ocvtp_native.attention_received(_taken(q), _taken(k), row, scale)
    return received


def _taken(x: Tensor) -> Tensor:
    """The tensor as the kernels take it: those of the CPU read half precision as it is."""
    return x if x.is_cpu and x.dtype in HALF else computed(x)
