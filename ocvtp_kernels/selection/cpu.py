"""Selection on the CPU: slots' tokens are ordered by log-attention, sums in float32 or wider."""

from __future__ import annotations

from torch import Tensor

from ocvtp_kernels.dtypes import accumulate_dtype
from ocvtp_kernels.selection import reference
from ocvtp_kernels.slots.reference import slot_logits


def log_attention(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """``log softmax over slots of (scale * q k^T)``: [B, K, D], [B, N, D] -> [B, K, N].

    Orders a slot's tokens as the attention does, and still where that saturates at 1.
    """
    wide = accumulate_dtype(q.dtype)
    return slot_logits(q.to(wide), k.to(wide), scale).log_softmax(dim=1)


def slot_argmax(q: Tensor, k: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """`reference.slot_argmax` on log-attention."""
    picks, peak = reference.slot_picks(log_attention(q, k, scale))
    return picks.squeeze(-1), peak.exp().to(q.dtype)


def argmax_gather(
    q: Tensor,
    k: Tensor,
    final: Tensor,
    importance: Tensor | None,
    budget: int,
    scale: float | None = None,
    top_k: int = 1,
) -> tuple[Tensor, Tensor]:
    """`reference.argmax_gather` on log-attention."""
    ids = reference.select_ids(log_attention(q, k, scale), importance, budget, top_k)
    return reference.gather_tokens(final, ids), ids


def merge(q: Tensor, k: Tensor, final: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """`reference.merge`, accumulated in float32 or wider, returned in the input dtypes."""
    wide = accumulate_dtype(q.dtype)
    merged, mass = reference.merge(
        q.to(wide), k.to(wide), final.to(accumulate_dtype(final.dtype)), scale
    )
    return merged.to(final.dtype), mass.to(q.dtype)
