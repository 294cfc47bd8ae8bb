"""The attention that each token receives from a self-attention layer."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.ops.attention_from_rows import attention_from_rows
from ocvtp_kernels.ops.registry import composite

MODES = ("meanq", "cls", "last")
ROW = {"cls": 0, "last": -1}  # of the modes that read one query


def _rows(q: Tensor, k: Tensor, mode: str) -> Tensor:
    """The rows of queries that the mode reads; checks what is narrower here than of any rows."""
    checks.require_rank("q", q, "B, H, M, d")
    checks.require_rank("k", k, "B, H, N, d")
    checks.require_size("k", k, 1, q.shape[1], "q")
    checks.require_nonempty("q", q, 2, "query")
    checks.require_one_of("mode", mode, MODES)
    return q.narrow(2, ROW[mode], 1) if mode in ROW else q


def _reference(q: Tensor, k: Tensor, mode: str, scale: float | None = None) -> Tensor:
    received: Tensor = attention_from_rows.reference(_rows(q, k, mode), k, scale=scale)
    return received


@composite(parts="ocvtp::attention_from_rows", reference=_reference)
def attention_received(q: Tensor, k: Tensor, mode: str, scale: float | None = None) -> Tensor:
    """The attention each token receives from a self-attention layer, averaged over heads.

    ``P = softmax over keys of (scale * q k^T)``, then the mean over heads and over

    * "meanq": all queries (OC-VTP's ``att_score`` padding, HiPrune),
    * "cls": query 0 alone (VisionZip, FasterVLM),
    * "last": the last query alone (FastV).

    Source: arXiv 2511.20439, the authors' ``OCL_ATTSEL``.

    Args:
        q: ``[B, H, M, d]`` queries, any floating dtype; k: ``[B, H, N, d]`` keys, likewise.
        mode: one of "meanq", "cls", "last".
        scale: factor of the logits; d^-0.5 if None.

    Returns:
        ``[B, N]``, float32 or wider, as values near 1/N lie too close for the half dtypes to
        rank.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit, or there is no
            such mode; the message names it.
    """
    received: Tensor = torch.ops.ocvtp.attention_from_rows(_rows(q, k, mode), k, scale=scale)
    return received
