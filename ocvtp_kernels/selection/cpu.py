"""Selection on the CPU: scores and sums in float32 or wider."""

from __future__ import annotations

from torch import Tensor

from ocvtp_kernels.dtypes import accumulate_dtype
from ocvtp_kernels.selection import reference


def slot_argmax(q: Tensor, k: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """`reference.slot_argmax`, the peak returned in the dtype of ``q``."""
    wide = accumulate_dtype(q.dtype)
    ids, peak = reference.slot_argmax(q.to(wide), k.to(wide), scale)
    return ids, peak.to(q.dtype)


def argmax_gather(
    q: Tensor,
    k: Tensor,
    final: Tensor,
    importance: Tensor | None,
    budget: int,
    scale: float | None = None,
    top_k: int = 1,
) -> tuple[Tensor, Tensor]:
    """`reference.argmax_gather`; final tokens keep their dtype."""
    wide = accumulate_dtype(q.dtype)
    return reference.argmax_gather(q.to(wide), k.to(wide), final, importance, budget, scale, top_k)


def merge(q: Tensor, k: Tensor, final: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """`reference.merge`, returned in the input dtypes."""
    wide = accumulate_dtype(q.dtype)
    merged, mass = reference.merge(
        q.to(wide), k.to(wide), final.to(accumulate_dtype(final.dtype)), scale
    )
    return merged.to(final.dtype), mass.to(q.dtype)
