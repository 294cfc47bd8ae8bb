"""Selection on the native kernels: C++ on the CPU, CUDA C++ on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.native import computed, dense_rows

MOST_PICKS = 65535  # of an image, on a GPU: a pick's place is 16 bits
MOST_PACKED_SLOTS = 2048  # on a GPU: their packed picks are in shared memory


def _scale_of(q: Tensor, scale: float | None) -> float:
    return float(q.shape[-1] ** -0.5 if scale is None else scale)


def slot_argmax(q: Tensor, k: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """`ocvtp_kernels.ops.argmax_gather.reference.slot_argmax`, scores in float32 or wider."""
    picks, peak, _ = pick(computed(q), computed(k), None, _scale_of(q, scale), 1, False)
    return picks.squeeze(-1), peak.exp().to(q.dtype)


def resolve_picks(
    picks: Tensor,
    peak: Tensor,
    importance: Tensor | None,
    budget: int,
    num_tokens: int | None = None,
) -> Tensor:
    """`ocvtp_kernels.ops.argmax_gather.reference.resolve_picks`."""
    picks = picks.unsqueeze(-1) if picks.dim() == 2 else picks
    tokens = num_tokens if importance is None else importance.shape[1]
    ids: Tensor = torch.ops.ocvtp_native.resolve_picks(picks, peak, importance, budget, tokens)
    return ids


def pick(
    q: Tensor,
    k: Tensor,
    constant: Tensor | None,
    scale: float,
    top_k: int,
    evidence: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The slots' picks by ``logits = scale q k^T + constant``.

    Returns:
        picks int64 ``[B, K, top_k]``; peak ``[B, K]``, log-attention; evidence ``[B, N]``, or empty
        where it is not asked for.
    """
    picks, peak, scores = torch.ops.ocvtp_native.slot_argmax(q, k, constant, scale, top_k, evidence)
    return picks, peak, scores


def select(
    q: Tensor,
    k: Tensor,
    constant: Tensor | None,
    scale: float,
    final: Tensor,
    importance: Tensor | None,
    budget: int,
    top_k: int,
) -> tuple[Tensor, Tensor]:
    """Kept tokens ``[B, T, C]`` and ids ``[B, T]`` by ``logits = scale q k^T + constant``."""
    native, final = torch.ops.ocvtp_native, dense_rows(final)
    # On a GPU the kernel that resolves takes the best over the tiles of tokens too: a launch less.
    if q.device.type == "cuda" and top_k == 1 and q.shape[1] <= MOST_PACKED_SLOTS:
        packed, evidence = native.slot_argmax_packed(q, k, constant, scale, importance is None)
        padding = evidence if importance is None else importance
        tokens, ids = native.resolve_gather_packed(packed, padding, final, budget)
        return tokens, ids
    picks, peak, evidence = pick(q, k, constant, scale, top_k, importance is None)
    padding = evidence if importance is None else importance
    tokens, ids = native.resolve_gather(picks, peak, padding, final, budget)
    return tokens, ids


def merge(q: Tensor, k: Tensor, final: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """`ocvtp_kernels.ops.argmax_gather.reference.merge`, a slot's own tokens summed alone."""
    merged, mass = torch.ops.ocvtp_native.merge(q, k, final, _scale_of(q, scale))
    return merged, mass


def argmax_gather(
    q: Tensor,
    k: Tensor,
    final: Tensor,
    importance: Tensor | None,
    budget: int,
    scale: float | None = None,
    top_k: int = 1,
) -> tuple[Tensor, Tensor]:
    """`ocvtp_kernels.ops.argmax_gather.reference.argmax_gather`; final tokens keep their dtype."""
    return select(
        computed(q), computed(k), None, _scale_of(q, scale), final, importance, budget, top_k
    )
