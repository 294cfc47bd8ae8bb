"""Greedy selection in plain PyTorch: the oracle of the greedy kernels.

Every selection reads a matrix of similarities or distances, ``[B, N, N]``, of which a step needs
one row: that of the token picked last. Ties go to the lowest id; a NaN never beats a number.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TINY = 1e-12  # of a variance that nothing is left of


def nan_last(scores: Tensor) -> Tensor:
    """A NaN counts as -inf."""
    return scores.masked_fill(scores.isnan(), -math.inf)


def take_row(matrix: Tensor, ids: Tensor) -> Tensor:
    """Row ``ids[b]`` of each image: ``[B, N, M]``, ``[B]`` -> ``[B, M]``."""
    return matrix[torch.arange(len(ids), device=ids.device), ids]


def first_of_highest(scores: Tensor, taken: Tensor) -> Tensor:
    """The lowest id of the highest score, ``[B]``, among tokens not taken yet."""
    # Argmax may name any of the highest: the first comes from a comparison. Taken tokens stand
    # behind those whose score is -inf.
    scores = nan_last(scores)
    best = scores.masked_fill(taken, -math.inf).amax(dim=1, keepdim=True)
    return ((scores == best) & ~taken).to(torch.uint8).argmax(dim=1)


def farthest_select(
    distances: Tensor, first: Tensor | None, budget: int, distinct: bool = True
) -> Tensor:
    """Farthest-point greedy: each pick is the token farthest from its nearest pick.

    ``j_t = argmax_j min_{s < t} distances[j_s, j]``; source: DivPrune, arXiv 2503.02175.

    Args:
        distances: ``[B, N, N]``.
        first: int64 ``[B]`` first picks; None takes the token whose nearest other is farthest:
            the argmax over columns of a column's second smallest distance.
        budget: T, 1 to N.
        distinct: whether a token is picked once only; the published code relies on a token's
            distance to itself being the smallest, and picks duplicates twice.

    Returns:
        int64 ``[B, T]``, in the order picked.
    """
    batch, num_tokens, _ = distances.shape
    distances = nan_last(distances)
    taken = torch.zeros(batch, num_tokens, dtype=torch.bool, device=distances.device)
    if first is None:
        # A single token has no second distance.
        rank = min(2, num_tokens)
        nearest = distances.topk(rank, dim=1, largest=False).values[:, rank - 1]
        first = first_of_highest(nearest, taken)
    order, pick = [first], first
    running = distances.new_full((batch, num_tokens), math.inf)
    for _ in range(budget - 1):
        running = torch.minimum(running, take_row(distances, pick))
        if distinct:
            taken = taken.scatter(1, pick[:, None], True)
        pick = first_of_highest(running, taken)
        order.append(pick)
    return torch.stack(order, dim=1)


def pivot_select(points: Tensor, budget: int) -> Tensor:
    """Farthest-point greedy by Euclidean distance, from the point of largest L1 norm.

    Source: VLM-Pruner, arXiv 2512.02700, stage 1. Squared distances order alike and are summed
    over differences, which do not cancel.

    Args:
        points: ``[B, N, D]``, keys.
        budget: 1 to N.

    Returns:
        int64 ``[B, budget]``, in the order picked, distinct.
    """
    taken = torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device)
    pick = first_of_highest(points.abs().sum(-1), taken)
    order = [pick]
    running = points.new_full(points.shape[:2], math.inf)
    for _ in range(budget - 1):
        offsets = points - take_row(points, pick)[:, None]
        running = torch.minimum(running, nan_last(offsets.square().sum(-1)))
        taken = taken.scatter(1, pick[:, None], True)
        pick = first_of_highest(running, taken)
        order.append(pick)
    return torch.stack(order, dim=1)


def dpp_select(similarity: Tensor, quality: Tensor, budget: int) -> Tensor:
    """Greedy MAP inference of a determinantal point process ``L = q_i S_ij q_j``.

    With ``v = diag(L)``: pick ``j = argmax v``; ``C_t = (L_j - sum_{s<t} C_sj C_s) / sqrt(v_j)``;
    ``v -= C_t^2``. Source: CDPruner, arXiv 2506.10967, by Chen et al. 2018. Where ``v_j`` is at
    most 1e-12 of the image's largest ``L_ii`` nothing is left to explain, and ``C_t`` is 0: the
    published code divides by it all the same.

    Args:
        similarity: ``[B, N, N]``; quality: ``[B, N]``.
        budget: T, 1 to N.

    Returns:
        int64 ``[B, T]``, in the order picked, distinct.
    """
    batch, num_tokens, _ = similarity.shape
    quality = quality.to(similarity.dtype)
    left = quality.square() * similarity.diagonal(dim1=1, dim2=2)
    least = TINY * nan_last(left).amax(dim=1, keepdim=True).clamp_min(0)
    taken = torch.zeros(batch, num_tokens, dtype=torch.bool, device=similarity.device)
    order: list[Tensor] = []
    components: list[Tensor] = []
    for _ in range(budget):
        pick = first_of_highest(left, taken)
        order.append(pick)
        place = pick[:, None]
        rest = quality.gather(1, place) * take_row(similarity, pick) * quality
        for component in components:
            rest = rest - component.gather(1, place) * component
        variance = left.gather(1, place)
        explained = rest / variance.clamp_min(torch.finfo(left.dtype).tiny).sqrt()
        explained = explained.where(variance > least, torch.zeros_like(explained))
        components.append(explained)
        left = left - explained.square()
        taken = taken.scatter(1, place, True)
    return torch.stack(order, dim=1)


def facility_select(similarity: Tensor, saliency: Tensor, budget: int) -> Tensor:
    """Greedy facility location, weighted by saliency.

    ``gain_j = saliency_j * sum_i max(0, similarity_ji - covered_i)``, pick the largest, then
    ``covered = max(covered, similarity_j)`` from 0. Source: SCOPE, arXiv 2510.24214.

    Args:
        similarity: ``[B, N, N]``; saliency: ``[B, N]``, not negative.
        budget: T, 1 to N.

    Returns:
        int64 ``[B, T]``, in the order picked, distinct.
    """
    batch, num_tokens, _ = similarity.shape
    covered = similarity.new_zeros((batch, num_tokens))
    taken = torch.zeros(batch, num_tokens, dtype=torch.bool, device=similarity.device)
    order: list[Tensor] = []
    for _ in range(budget):
        gain = (similarity - covered[:, None]).clamp_min(0).sum(dim=2) * saliency
        pick = first_of_highest(gain, taken)
        order.append(pick)
        taken = taken.scatter(1, pick[:, None], True)
        covered = torch.maximum(covered, take_row(similarity, pick))
    return torch.stack(order, dim=1)


def match_select(similarity: Tensor, ranked: Tensor, budget: int, drop: int = 8) -> Tensor:
    """Rounds of bipartite matching, each dropping the tokens most like another.

    While more than ``budget`` are left: even places a, odd places b; the ``drop`` (or as many as
    are too many, or all) tokens of a with the largest ``max_b similarity_ab`` go; a's survivors,
    most similar first, then b make the next list. Source: VisPruner, ICCV 2025.

    Args:
        similarity: ``[B, N, N]``.
        ranked: int64 ``[B, R]`` distinct ids, R at least ``budget``; equal similarities go to the
            earlier place.
        budget: tokens left at the end, 1 to R.
        drop: most tokens dropped in a round, at least 1.

    Returns:
        int64 ``[B, budget]``, in the order of the last list.
    """
    image = torch.arange(len(ranked), device=ranked.device)[:, None]
    while ranked.shape[1] > budget:
        a, b = ranked[:, 0::2], ranked[:, 1::2]
        gone = min(drop, ranked.shape[1] - budget, a.shape[1])
        likeness = nan_last(similarity[image[:, None], a[:, :, None], b[:, None, :]]).amax(dim=2)
        by_likeness = likeness.argsort(dim=1, descending=True, stable=True)
        ranked = torch.cat([a.gather(1, by_likeness[:, gone:]), b], dim=1)
    return ranked


def is_owned(owner: Tensor, num_owners: int) -> Tensor:
    """Whether a token's owner is one of 0 to ``num_owners - 1``."""
    return (owner >= 0) & (owner < num_owners)


def scatter_merge(
    tokens: Tensor, owner: Tensor, weight: Tensor, num_owners: int
) -> tuple[Tensor, Tensor]:
    """Weighted sums of the tokens by owner.

    ``sum_t = sum_{n: owner_n = t} weight_n tokens_n``, ``mass_t = sum_{n: owner_n = t} weight_n``.

    Args:
        tokens: ``[B, N, C]``; owner: int64 ``[B, N]``, 0 to num_owners - 1; anything else, such as
            -1, is none: such a token is in no sum and has no gradient.
        weight: ``[B, N]``.
        num_owners: T.

    Returns:
        sums ``[B, T, C]`` and mass ``[B, T]``, in the wider of both dtypes.
    """
    wide = torch.promote_types(tokens.dtype, weight.dtype)
    places = torch.arange(num_owners, device=owner.device)
    shares = torch.where(owner[:, None] == places[:, None], weight[:, None], 0.0).to(wide)
    # A share of 0 would make NaN of a token that is NaN.
    rows = tokens.to(wide).masked_fill(~is_owned(owner, num_owners)[..., None], 0)
    return torch.matmul(shares, rows), shares.sum(dim=2)


def channel_variance(tokens: Tensor) -> Tensor:
    """Each channel's unbiased variance over the tokens of an image.

    Args:
        tokens: ``[B, N, C]``.

    Returns:
        ``[B, C]``; NaN of a single token.
    """
    return tokens.var(dim=1)
