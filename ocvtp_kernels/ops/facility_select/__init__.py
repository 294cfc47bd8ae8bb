"""Greedy facility location: tokens that cover the others best."""

from __future__ import annotations

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


def _check(similarity: Tensor, saliency: Tensor, budget: int) -> None:
    check_square("similarity", similarity)
    check_by_token("saliency", saliency, "similarity", similarity)
    checks.require_budget(budget, similarity.shape[1])


@op(
    check=_check,
    fake=lambda similarity, budget: fake_order(similarity, budget),
    cpu=native_kernel("facility_select"),
    triton="triton",
    unsupported={"triton": lambda similarity: too_many_tokens(similarity)},
    reference=Upcast(),
)
def facility_select(similarity: Tensor, saliency: Tensor, budget: int) -> Tensor:
    """Greedy facility location, weighted by saliency.

    ``gain_j = saliency_j * sum_i max(0, similarity_ji - covered_i)``, pick the largest, then
    ``covered = max(covered, similarity_j)`` from 0. Source: SCOPE, arXiv 2510.24214.

    Args:
        similarity: ``[B, N, N]``, any floating dtype; saliency: ``[B, N]``, not negative.
        budget: T, 1 to N.

    Returns:
        int64 ``[B, T]``, in the order picked, distinct.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit, or the budget is
            not within 1 to N; the message names it.
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
