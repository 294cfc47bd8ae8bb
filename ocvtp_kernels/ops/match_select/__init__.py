"""Rounds of bipartite matching that drop the tokens most like another."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.ops.greedy import (
    check_ids,
    check_square,
    fake_order,
    native_kernel,
    require_ids,
    too_many_tokens,
)
from ocvtp_kernels.ops.ordering import nan_last
from ocvtp_kernels.ops.registry import Upcast, op


def _check(similarity: Tensor, ranked: Tensor, budget: int, drop: int) -> None:
    check_square("similarity", similarity)
    check_ids("ranked", ranked, "B, R", "similarity", similarity)
    checks.require_budget(budget, ranked.shape[1])
    checks.require_at_least("drop", drop, 1)


@op(
    check=_check,
    values=lambda similarity, ranked: require_ids("ranked", ranked, similarity.shape[1]),
    fake=lambda similarity, budget: fake_order(similarity, budget),
    cpu=native_kernel("match_select"),
    triton="triton",
    unsupported={"triton": lambda similarity: too_many_tokens(similarity)},
    reference=Upcast(),
)
def match_select(similarity: Tensor, ranked: Tensor, budget: int, drop: int = 8) -> Tensor:
    """Rounds of bipartite matching, each dropping the tokens most like another.

    While more than ``budget`` are left: even places a, odd places b; the ``drop`` (or as many as
    are too many, or all) tokens of a with the largest ``max_b similarity_ab`` go; a's survivors,
    most similar first, then b make the next list. Source: VisPruner, ICCV 2025.

    Args:
        similarity: ``[B, N, N]``, any floating dtype.
        ranked: int64 ``[B, R]`` distinct ids, R at least ``budget``; equal similarities go to the
            earlier place.
        budget: tokens left at the end, 1 to R.
        drop: most tokens dropped in a round, at least 1.

    Returns:
        int64 ``[B, budget]``, in the order of the last list.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit, or the budget is
            not within 1 to R; the message names it. Ids are looked at on a CPU alone.
    """
    image = torch.arange(ranked.shape[0], device=ranked.device)[:, None]
    while ranked.shape[1] > budget:
        a, b = ranked[:, 0::2], ranked[:, 1::2]
        num_dropped = min(drop, ranked.shape[1] - budget, a.shape[1])
        likeness = nan_last(similarity[image[:, None], a[:, :, None], b[:, None, :]]).amax(dim=2)
        by_likeness = likeness.argsort(dim=1, descending=True, stable=True)
        ranked = torch.cat([a.gather(1, by_likeness[:, num_dropped:]), b], dim=1)
    return ranked.clone(memory_format=torch.contiguous_format)
