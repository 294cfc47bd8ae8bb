"""Selection in plain PyTorch: per-slot argmax, dedupe, pad, trim, sort, gather.

The oracle of the selection kernels. Nothing here loops over images, slots or tokens and nothing
waits for the device, so it also serves devices that have no kernel. Source: arXiv 2511.20439 and
the authors' ``compress_tokens_by_slots``; the overflow rule is ours (see `resolve_picks`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ocvtp_kernels.ops.slot_attention import reference as slots


def _nan_last(scores: Tensor) -> Tensor:
    """A NaN never beats a number: it counts as -inf."""
    return scores.masked_fill(scores.isnan(), -math.inf)


def slot_picks(scores: Tensor, top_k: int = 1) -> tuple[Tensor, Tensor]:
    """The ``top_k`` best tokens of each slot, ties to the lowest index.

    Args:
        scores: ``[B, K, N]``, the log-attention or anything that orders tokens like it.

    Returns:
        picks int64 ``[B, K, top_k]``, best first, and each slot's peak score ``[B, K]``.
    """
    scores = _nan_last(scores)
    if top_k == 1:
        peak, picks = scores.max(dim=-1)
        return picks.unsqueeze(-1), peak
    ranked, order = scores.sort(dim=-1, descending=True, stable=True)
    return order[..., :top_k], ranked[..., 0]


def slot_argmax(q: Tensor, k: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Each slot's best token under ``A = softmax over slots of (scale * q k^T)``.

    Args:
        q: ``[B, K, D]``; k: ``[B, N, D]``.

    Returns:
        ids int64 ``[B, K]`` (ties to the lowest index, NaN never wins) and the peak
        ``max_n A`` ``[B, K]``, in the dtype of ``q``.
    """
    picks, peak = slot_picks(slots.log_attention(slots.slot_logits(q, k, scale)))
    return picks.squeeze(-1), peak.exp()


def _inverse_permutation(order: Tensor) -> Tensor:
    """The rank of each element, given the order they stand in: [B, P] -> [B, P]."""
    ranks = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, ranks)


def _pick_order(picks: Tensor, peak: Tensor) -> Tensor:
    """Orders picks by (rank within slot, id), then stably by their slot's peak, best first."""
    batch, num_slots, top_k = picks.shape
    flat = picks.transpose(1, 2).reshape(batch, top_k * num_slots)
    peaks = _nan_last(peak).unsqueeze(1).expand(batch, top_k, num_slots).reshape(flat.shape)
    rank = torch.arange(top_k, device=picks.device).repeat_interleave(num_slots)
    by_id = (flat + rank * (2**40)).argsort(dim=-1, stable=True)
    by_peak = peaks.gather(-1, by_id).argsort(dim=-1, descending=True, stable=True)
    return flat.gather(-1, by_id.gather(-1, by_peak))


def resolve_picks(
    picks: Tensor,
    peak: Tensor,
    importance: Tensor | None,
    budget: int,
    num_tokens: int | None = None,
) -> Tensor:
    """Turns the slots' picks into exactly ``budget`` distinct ascending ids.

    Picks are a set. Too few distinct: the unpicked tokens of highest importance fill the gap.
    Too many: the slots with the smallest peak go, within a slot its weaker picks first. (The
    authors cut a Python set there and lose the highest ids.) Ties go to the lowest id.

    Args:
        picks: int64 ``[B, K]`` or ``[B, K, top_k]`` token ids, a slot's best first.
        peak: ``[B, K]`` each slot's peak, any order-preserving score.
        importance: ``[B, N]`` score per token; None pads with the lowest unpicked ids.
        budget: T, tokens kept.
        num_tokens: N; needed only without ``importance``.

    Returns:
        ids int64 ``[B, budget]``.
    """
    if picks.dim() == 2:
        picks = picks.unsqueeze(-1)
    ordered = _pick_order(picks, peak)
    batch, num_picks = ordered.shape
    if importance is not None:
        order = _nan_last(importance).argsort(dim=-1, descending=True, stable=True)
        rank = num_picks + _inverse_permutation(order)
    else:
        assert num_tokens is not None
        rank = num_picks + torch.arange(num_tokens, device=picks.device).expand(batch, -1)
    # One integer per token, all different: its best place among the picks, else after them all.
    place = torch.arange(num_picks, device=picks.device).expand(batch, -1)
    rank = rank.scatter_reduce(-1, ordered, place, reduce="amin")
    return rank.argsort(dim=-1)[:, :budget].sort(dim=-1).values


def select_ids(scores: Tensor, importance: Tensor | None, budget: int, top_k: int = 1) -> Tensor:
    """Picks per slot, then `resolve_picks`; without importance the slots' own evidence pads.

    A token's evidence is its highest score over slots.

    Args:
        scores: ``[B, K, N]``, the log-attention.
        importance: ``[B, N]`` or None.

    Returns:
        ids int64 ``[B, budget]`` ascending.
    """
    picks, peak = slot_picks(scores, top_k)
    if importance is None:
        importance = scores.amax(dim=1)
    return resolve_picks(picks, peak, importance, budget)


def gather_tokens(final: Tensor, ids: Tensor) -> Tensor:
    """The named rows: final ``[B, N, C]``, ids ``[B, T]`` -> ``[B, T, C]``."""
    # Rows are copied whole, which a gather of their channels would not do.
    images = torch.arange(len(ids), device=ids.device)
    return final[images[:, None], ids]


def argmax_gather(
    q: Tensor,
    k: Tensor,
    final: Tensor,
    importance: Tensor | None,
    budget: int,
    scale: float | None = None,
    top_k: int = 1,
) -> tuple[Tensor, Tensor]:
    """`slot_argmax`, `resolve_picks` and the gather in one.

    Args:
        q: ``[B, K, D]``; k: ``[B, N, D]``; final: ``[B, N, C]``; importance: ``[B, N]`` or None.

    Returns:
        tokens ``[B, budget, C]`` and ids int64 ``[B, budget]`` ascending.
    """
    scores = slots.log_attention(slots.slot_logits(q, k, scale))
    ids = select_ids(scores, importance, budget, top_k)
    return gather_tokens(final, ids), ids


def merge(q: Tensor, k: Tensor, final: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Slot-weighted means of the final tokens instead of picks.

    Each token belongs to its argmax slot alone (ties to the lowest slot):
    ``w_kn = A_kn if k = argmax_k A_kn else 0``, ``merged_k = sum_n w_kn final_n / sum_n w_kn``.
    A slot that owns no token returns zeros and mass 0 (the authors divide by zero there).
    Source: the authors' ``OCL_MODE=merging``.

    Args:
        q: ``[B, K, D]``; k: ``[B, N, D]``; final: ``[B, N, C]``.

    Returns:
        merged ``[B, K, C]`` in the dtype of ``final``, and mass ``[B, K]``, ``sum_n w_kn``.
    """
    weights, mass = merge_weights(q, k, scale)
    return torch.matmul(weights.to(final.dtype), final), mass


def merge_weights(q: Tensor, k: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """The weights of `merge`: ``w_kn / sum_n w_kn`` ``[B, K, N]``, and mass ``[B, K]``."""
    share, owner = slot_owners(q, k, scale)
    weights = share.new_zeros((q.shape[0], q.shape[1], k.shape[1]))
    mass = weights.scatter_(1, owner.unsqueeze(1), share.unsqueeze(1)).sum(dim=-1)
    return weights / mass.clamp_min(torch.finfo(mass.dtype).tiny).unsqueeze(-1), mass


def slot_owners(q: Tensor, k: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """Each token's largest share of attention ``[B, N]``, and the slot that has it, int64."""
    share, owner = slots.slot_logits(q, k, scale).softmax(dim=1).max(dim=1)
    return share, owner
