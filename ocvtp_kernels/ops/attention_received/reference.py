"""Attention received in plain PyTorch: the oracle of the importance kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.dtypes import accumulate_dtype

MODES = ("meanq", "cls", "last")
QUERY_ROW = {"cls": 0, "last": -1}


def attention_received(q: Tensor, k: Tensor, mode: str, scale: float | None = None) -> Tensor:
    """The attention each token receives from a self-attention layer, averaged over heads.

    ``P = softmax over keys of (scale * q k^T)``, then the mean over heads and over

    * "meanq": all queries (OC-VTP's ``att_score`` padding, HiPrune),
    * "cls": query 0 alone (VisionZip, FasterVLM),
    * "last": the last query alone (FastV).

    Source: arXiv 2511.20439, the authors' ``OCL_ATTSEL``.

    Args:
        q: ``[B, H, M, d]`` queries; k: ``[B, H, N, d]`` keys.
        mode: one of "meanq", "cls", "last".
        scale: factor of the logits; d^-0.5 if None.

    Returns:
        ``[B, N]``, float32 or wider: values near 1/N lie too close for the half dtypes to rank.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if mode in QUERY_ROW:
        row = QUERY_ROW[mode] % q.shape[2]
        q = q[:, :, row : row + 1]
    attention = (torch.matmul(q, k.transpose(-1, -2)) * scale).softmax(dim=-1)
    return attention.mean(dim=(1, 2), dtype=accumulate_dtype(q.dtype))
