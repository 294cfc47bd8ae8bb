"""Greedy selection on the native CPU kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.native import computed


def farthest_select(
    distances: Tensor, first: Tensor | None, budget: int, distinct: bool = True
) -> Tensor:
    """`ocvtp_kernels.greedy.reference.farthest_select`."""
    order: Tensor = torch.ops.ocvtp_native.farthest_select(
        computed(distances), first, budget, distinct
    )
    return order


def pivot_select(points: Tensor, budget: int) -> Tensor:
    """`ocvtp_kernels.greedy.reference.pivot_select`."""
    order: Tensor = torch.ops.ocvtp_native.pivot_select(computed(points), budget)
    return order


def centrifugal_select(
    similarity: Tensor,
    pivots: Tensor,
    height: int,
    width: int,
    budget: int,
    spread: float = 0.5,
    threshold: float = 0.8,
    step: float = 0.1,
    chunk: int = 16,
    pad: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`ocvtp_kernels.greedy.centrifugal.centrifugal_select`."""
    order, count, owner, closeness = torch.ops.ocvtp_native.centrifugal_select(
        computed(similarity),
        pivots,
        height,
        width,
        budget,
        spread,
        threshold,
        step,
        chunk,
        pad,
    )
    return order, count, owner, closeness


def dpp_select(similarity: Tensor, quality: Tensor, budget: int) -> Tensor:
    """`ocvtp_kernels.greedy.reference.dpp_select`."""
    order: Tensor = torch.ops.ocvtp_native.dpp_select(*_alike(similarity, quality), budget)
    return order


def facility_select(similarity: Tensor, saliency: Tensor, budget: int) -> Tensor:
    """`ocvtp_kernels.greedy.reference.facility_select`."""
    order: Tensor = torch.ops.ocvtp_native.facility_select(*_alike(similarity, saliency), budget)
    return order


def match_select(similarity: Tensor, ranked: Tensor, budget: int, drop: int = 8) -> Tensor:
    """`ocvtp_kernels.greedy.reference.match_select`."""
    left: Tensor = torch.ops.ocvtp_native.match_select(computed(similarity), ranked, budget, drop)
    return left


def scatter_merge(
    tokens: Tensor, owner: Tensor, weight: Tensor, num_owners: int
) -> tuple[Tensor, Tensor]:
    """`ocvtp_kernels.greedy.reference.scatter_merge`."""
    tokens, weight = _alike(tokens, weight)
    sums, mass = torch.ops.ocvtp_native.scatter_merge(tokens, owner, weight, num_owners)
    return sums, mass


def channel_variance(tokens: Tensor) -> Tensor:
    """`ocvtp_kernels.greedy.reference.channel_variance`, without a copy of the tokens."""
    if tokens.dtype == torch.float64:
        # There no wider sum makes equal what torch has equal, and ties are to fall as its do.
        return tokens.var(dim=1)
    variance: Tensor = torch.ops.ocvtp_native.channel_variance(computed(tokens))
    return variance


def _alike(matrix: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their dtypes."""
    matrix, scores = computed(matrix), computed(scores)
    wide = torch.promote_types(matrix.dtype, scores.dtype)
    return matrix.to(wide), scores.to(wide)
