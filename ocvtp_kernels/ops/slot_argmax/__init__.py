"""Each slot's best token."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ocvtp_kernels.native import upcast
from ocvtp_kernels.ops.arguments import check_queries_and_keys
from ocvtp_kernels.ops.registry import Upcast, op
from ocvtp_kernels.ops.slot_attention.reference import log_attention, slot_logits


def nan_last(scores: Tensor) -> Tensor:
    """The scores with NaN as -inf, so that a NaN never beats a number."""
    return scores.masked_fill(scores.isnan(), -math.inf)


def slot_topk(scores: Tensor, top_k: int = 1) -> tuple[Tensor, Tensor]:
    """The ``top_k`` best tokens of each slot, ties to the lowest index.

    Args:
        scores: ``[B, K, N]``, the log-attention or anything that orders tokens like it.

    Returns:
        ids int64 ``[B, K, top_k]``, best first, and each slot's largest score ``[B, K]``.
    """
    scores = nan_last(scores)
    if top_k == 1:
        max_logprob, topk_ids = scores.max(dim=-1)
        return topk_ids.unsqueeze(-1), max_logprob
    ranked, order = scores.sort(dim=-1, descending=True, stable=True)
    return order[..., :top_k].contiguous(), ranked[..., 0].contiguous()


def scale_or_default(q: Tensor, scale: float | None) -> float:
    """The factor of the logits, D^-0.5 if None."""
    return float(q.shape[-1] ** -0.5 if scale is None else scale)


def _native(q: Tensor, k: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    topk_ids, max_logprob, _ = torch.ops.ocvtp_native.slot_argmax(
        upcast(q), upcast(k), None, scale_or_default(q, scale), 1, False
    )
    return topk_ids.squeeze(-1), max_logprob.exp().to(q.dtype)


@op(
    outputs=("ids", "peak"),
    check=check_queries_and_keys,
    fake=lambda q: (q.new_empty(q.shape[:2], dtype=torch.int64), q.new_empty(q.shape[:2])),
    cpu=_native,
    plain=Upcast(narrow=True),
    cuda=_native,
    triton="triton",
)
def slot_argmax(q: Tensor, k: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Each slot's best token under ``A = softmax over slots of (scale * q k^T)``.

    ``ids_k = argmax_n A_kn``, by the log-attention, which tells tokens apart where A rounds to 1.
    Source: arXiv 2511.20439, the authors' ``compress_tokens_by_slots``.

    Args:
        q: ``[B, K, D]`` slot queries, any floating dtype.
        k: ``[B, N, D]`` token keys, in the dtype and on the device of ``q``.
        scale: factor of the logits; D^-0.5 if None.

    Returns:
        ids int64 ``[B, K]``, ties to the lowest index and a NaN never the best, and the peak
        ``max_n A`` ``[B, K]`` in the dtype of ``q``. Scores are in float32 or wider.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit; the message names
            it.
    """
    topk_ids, max_logprob = slot_topk(log_attention(slot_logits(q, k, scale)))
    return topk_ids.squeeze(-1), max_logprob.exp()
