"""Selection on the CPU: scores and sums in float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.dtypes import accumulate_dtype, product_dtype
from ocvtp_kernels.ops.argmax_gather import reference


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
    """`reference.merge`, whose slots and weights are those of scores in float32 or wider."""
    wide = accumulate_dtype(q.dtype)
    weights, mass = reference.merge_weights(q.to(wide), k.to(wide), scale)
    dtype = product_dtype(final.dtype, final.device)
    merged = torch.matmul(weights.to(dtype), final.to(dtype))
    return merged.to(final.dtype), mass.to(q.dtype)
