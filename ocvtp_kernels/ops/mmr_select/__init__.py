"""Greedy maximal marginal relevance: tokens that are relevant and unlike those picked."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.ops.arguments import check_by_token
from ocvtp_kernels.ops.greedy import (
    check_square,
    fake_order,
    native_kernel,
    take_row,
    too_many_tokens,
)
from ocvtp_kernels.ops.ordering import first_of_highest
from ocvtp_kernels.ops.registry import Upcast, op


def _check(relevance: Tensor, similarity: Tensor, budget: int, trade_off: float) -> None:
    check_square("similarity", similarity)
    check_by_token("relevance", relevance, "similarity", similarity)
    checks.require_budget(budget, similarity.shape[1])
    checks.require_between("trade_off", trade_off, 0, 1)


@op(
    check=_check,
    fake=lambda similarity, budget: fake_order(similarity, budget),
    cpu=native_kernel("mmr_select"),
    triton="triton",
    unsupported={"triton": lambda similarity: too_many_tokens(similarity)},
    reference=Upcast(),
)
def mmr_select(
    relevance: Tensor, similarity: Tensor, budget: int, trade_off: float = 0.5
) -> Tensor:
    """Greedy maximal marginal relevance: relevant tokens, each unlike those picked before it.

    ``j_0 = argmax_j relevance_j``, then ``j_t = argmax_j trade_off * relevance_j - (1 - trade_off)
    * max_{s < t} similarity[j_s, j]`` among tokens not picked yet. Source: Carbonell and Goldstein
    1998, as in IDPruner, arXiv 2602.13315. A product, ``relevance_j * f(max_s similarity[j_s, j])``
    of a falling ``f``, is this of ``log(relevance)`` and ``-log(f(similarity))`` at ``trade_off``
    0.5.

    A term of weight 0 counts for nothing, infinite or NaN: at ``trade_off`` 0 relevance makes the
    first pick alone, at 1 similarity is not asked. A token whose score is NaN comes last, as one of
    score -inf does.

    Args:
        relevance: ``[B, N]``, any floating dtype.
        similarity: ``[B, N, N]``, any floating dtype.
        budget: T, 1 to N.
        trade_off: the weight of relevance, 0 to 1.

    Returns:
        int64 ``[B, T]``, in the order picked, distinct.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit, or the budget is
            not within 1 to N or ``trade_off`` not within 0 to 1; the message names it.
    """
    dtype = torch.promote_types(relevance.dtype, similarity.dtype)
    relevance, similarity = relevance.to(dtype), similarity.to(dtype)
    taken = torch.zeros(relevance.shape, dtype=torch.bool, device=relevance.device)
    pick = first_of_highest(relevance, taken)
    order = [pick]
    weighted = _weighted(trade_off, relevance)
    running = torch.full_like(relevance, -math.inf)
    for _ in range(budget - 1):
        taken = taken.scatter(1, pick[:, None], True)
        running = torch.maximum(running, take_row(similarity, pick))
        pick = first_of_highest(weighted - _weighted(1 - trade_off, running), taken)
        order.append(pick)
    return torch.stack(order, dim=1)


def _weighted(weight: float, scores: Tensor) -> Tensor:
    """``weight * scores``; 0 at weight 0, of scores that are not finite too."""
    rounded = scores.new_full((), weight)
    return (rounded * scores).where(rounded > 0, 0)
