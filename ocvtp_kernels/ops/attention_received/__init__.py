"""The attention that each token receives from a self-attention layer."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.dtypes import acc_dtype, product_dtype
from ocvtp_kernels.native import upcast
from ocvtp_kernels.ops.registry import op

MODES = ("meanq", "cls", "last")
QUERY_ROW = {"cls": 0, "last": -1}  # of the modes that read one query
EVERY_ROW = -1  # to the native kernels
HALF = (torch.float16, torch.bfloat16)
SMALL_MAP = 1 << 18  # elements of maps that are not worth a call for each


def _check(q: Tensor, k: Tensor, mode: str) -> None:
    checks.require_rank("q", q, "B, H, M, d")
    checks.require_rank("k", k, "B, H, N, d")
    checks.require_floating("q", q)
    checks.require_same_dtype_device("k", k, "q", q)
    for dim in (0, 1, 3):
        checks.require_size("k", k, dim, q.shape[dim], "q")
    checks.require_nonempty("q", q, 1, "head")
    checks.require_nonempty("q", q, 2, "query")
    checks.require_nonempty("k", k, 2, "token")
    checks.require_one_of("mode", mode, MODES)


def _native(q: Tensor, k: Tensor, mode: str, scale: float | None) -> Tensor:
    """No ``[B, H, M, N]`` in memory."""
    scale = float(q.shape[-1] ** -0.5 if scale is None else scale)
    row = QUERY_ROW[mode] % q.shape[2] if mode in QUERY_ROW else EVERY_ROW
    # The CPU kernels read half precision as it is.
    q, k = (x if x.is_cpu and x.dtype in HALF else upcast(x) for x in (q, k))
    received: Tensor = torch.ops.ocvtp_native.attention_received(q, k, row, scale)
    return received


def _plain(q: Tensor, k: Tensor, mode: str, scale: float | None) -> Tensor:
    """No more than one large map of a head in memory."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if mode in QUERY_ROW:
        # The maps are a row each, and no copy of all keys is worth a wider product.
        row = QUERY_ROW[mode] % q.shape[2]
        return _attention(q[:, :, row : row + 1], k, scale).mean((1, 2))
    dtype = product_dtype(q.dtype, q.device)
    heads = max(1, SMALL_MAP // max(1, q.shape[0] * q.shape[2] * k.shape[2]))
    sums = [
        _attention(some_q.to(dtype), some_k.to(dtype), scale).sum((1, 2))
        for some_q, some_k in zip(q.split(heads, 1), k.split(heads, 1), strict=True)
    ]
    return sum(sums[1:], sums[0]) / (q.shape[1] * q.shape[2])


def _attention(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """The map of queries by keys, in float32 or wider whatever the product is in."""
    logits = torch.matmul(q, k.mT).to(acc_dtype(q.dtype))
    return logits.mul_(scale).softmax(-1)


@op(
    check=_check,
    fake=lambda q, k: k.new_empty((k.shape[0], k.shape[2]), dtype=acc_dtype(q.dtype)),
    cpu=_native,
    plain=_plain,
    cuda=_native,
    triton="triton",
)
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
        ``[B, N]``, float32 or wider: values near 1/N lie too close for the half dtypes to rank.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit, or there is no
            such mode; the message names it.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if mode in QUERY_ROW:
        row = QUERY_ROW[mode] % q.shape[2]
        q = q[:, :, row : row + 1]
    attention = (torch.matmul(q, k.transpose(-1, -2)) * scale).softmax(dim=-1)
    return attention.mean(dim=(1, 2), dtype=acc_dtype(q.dtype))
