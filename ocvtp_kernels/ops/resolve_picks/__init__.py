"""From the slots' picks to exactly as many ids as the budget."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.ops.arguments import too_many_picks, too_many_tokens
from ocvtp_kernels.ops.greedy import require_ids
from ocvtp_kernels.ops.registry import op
from ocvtp_kernels.ops.slot_argmax import nan_last


def _check(
    topk_ids: Tensor,
    max_logprob: Tensor,
    importance: Tensor | None,
    budget: int,
    num_tokens: int | None,
) -> None:
    checks.require_tensor("topk_ids", topk_ids)
    if topk_ids.dim() not in (2, 3):
        raise ValueError(
            f"topk_ids: expected shape [B, K] or [B, K, top_k], got {list(topk_ids.shape)}"
        )
    if topk_ids.dtype != torch.int64:
        raise TypeError(f"topk_ids: expected dtype torch.int64, got {topk_ids.dtype}")
    checks.require_rank("max_logprob", max_logprob, "B, K")
    checks.require_floating("max_logprob", max_logprob)
    checks.require_same_device("max_logprob", max_logprob, "topk_ids", topk_ids)
    checks.require_size("max_logprob", max_logprob, 0, topk_ids.shape[0], "topk_ids")
    checks.require_size("max_logprob", max_logprob, 1, topk_ids.shape[1], "topk_ids")
    if importance is not None:
        checks.require_rank("importance", importance, "B, N")
        checks.require_floating("importance", importance)
        checks.require_same_device("importance", importance, "topk_ids", topk_ids)
        checks.require_size("importance", importance, 0, topk_ids.shape[0], "topk_ids")
        if num_tokens is not None:
            checks.require_size("importance", importance, 1, num_tokens, "num_tokens")
        num_tokens = importance.shape[1]
    if num_tokens is None:
        raise ValueError("num_tokens: expected the number of tokens, as importance is None")
    checks.require_budget(budget, num_tokens)


def _too_many_tokens(
    topk_ids: Tensor, importance: Tensor | None, num_tokens: int | None
) -> str | None:
    tokens = num_tokens if importance is None else importance.shape[1]
    return too_many_tokens(tokens or 0, topk_ids.shape[2] if topk_ids.dim() == 3 else 1)


def _too_many_picks(
    topk_ids: Tensor, importance: Tensor | None, num_tokens: int | None
) -> str | None:
    top_k = topk_ids.shape[2] if topk_ids.dim() == 3 else 1
    reason = too_many_picks(0, topk_ids.shape[1], top_k)
    return reason or _too_many_tokens(topk_ids, importance, num_tokens)


def _native(
    topk_ids: Tensor,
    max_logprob: Tensor,
    importance: Tensor | None,
    budget: int,
    num_tokens: int | None,
) -> Tensor:
    topk_ids = topk_ids.unsqueeze(-1) if topk_ids.dim() == 2 else topk_ids
    tokens = num_tokens if importance is None else importance.shape[1]
    ids: Tensor = torch.ops.ocvtp_native.resolve_picks(
        topk_ids, max_logprob, importance, budget, tokens
    )
    return ids


def _check_values(topk_ids: Tensor, importance: Tensor | None, num_tokens: int | None) -> None:
    tokens = num_tokens if importance is None else importance.shape[1]
    assert tokens is not None
    require_ids("topk_ids", topk_ids, tokens)


@op(
    check=_check,
    values=_check_values,
    fake=lambda topk_ids, budget: topk_ids.new_empty((topk_ids.shape[0], budget)),
    cpu=_native,
    cuda=_native,
    triton="triton",
    unsupported={"triton": _too_many_tokens, "cuda": _too_many_picks},
)
def resolve_picks(
    topk_ids: Tensor,
    max_logprob: Tensor,
    importance: Tensor | None,
    budget: int,
    num_tokens: int | None = None,
) -> Tensor:
    """Turns the slots' picks into exactly ``budget`` distinct ascending ids.

    Picks are a set. Too few distinct: the unpicked tokens of highest importance fill the gap.
    Too many: the slots with the smallest ``max_logprob`` lose theirs, within a slot its weaker
    picks first. Ties go to the lowest id. Source: arXiv 2511.20439; the authors cut a Python set
    where there are too many, and lose the highest ids.

    Args:
        topk_ids: int64 ``[B, K]`` or ``[B, K, top_k]`` token ids, a slot's best first; the schema
            calls them ``picks``.
        max_logprob: ``[B, K]`` each slot's largest log-attention, or any score that orders slots
            alike; the schema calls it ``peak``.
        importance: floating ``[B, N]``, a score per token; None fills with the lowest unpicked ids.
        budget: T, tokens kept, 1 to N.
        num_tokens: N; needed only without ``importance``.

    Returns:
        ids int64 ``[B, budget]``.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit, or the budget is
            not within 1 to N; the message names it. Ids are looked at on a CPU alone.
    """
    if topk_ids.dim() == 2:
        topk_ids = topk_ids.unsqueeze(-1)
    ordered = _by_rank(topk_ids, max_logprob)
    batch, num_picks = ordered.shape
    if importance is not None:
        order = nan_last(importance).argsort(dim=-1, descending=True, stable=True)
        rank = num_picks + _inverse_permutation(order)
    else:
        assert num_tokens is not None
        rank = num_picks + torch.arange(num_tokens, device=topk_ids.device).expand(batch, -1)
    # One integer per token, all different: its best place among the picks, else after them all.
    place = torch.arange(num_picks, device=topk_ids.device).expand(batch, -1)
    rank = rank.scatter_reduce(-1, ordered, place, reduce="amin")
    return rank.topk(budget, largest=False).indices.sort(dim=-1).values


def _by_rank(topk_ids: Tensor, max_logprob: Tensor) -> Tensor:
    """Picks by (rank within slot, id), then stably by their slot's ``max_logprob``, best first."""
    batch, num_slots, top_k = topk_ids.shape
    flat = topk_ids.transpose(1, 2).reshape(batch, top_k * num_slots)
    scores = nan_last(max_logprob).unsqueeze(1).expand(batch, top_k, num_slots).reshape(flat.shape)
    rank = torch.arange(top_k, device=flat.device).repeat_interleave(num_slots)
    by_id = (flat + rank * (2**40)).argsort(dim=-1, stable=True)
    by_score = scores.gather(-1, by_id).argsort(dim=-1, descending=True, stable=True)
    return flat.gather(-1, by_id.gather(-1, by_score))


def _inverse_permutation(order: Tensor) -> Tensor:
    """The rank of each element, given the order they stand in: [B, P] -> [B, P]."""
    ranks = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, ranks)
