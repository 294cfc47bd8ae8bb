"""Farthest-point greedy selection of points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.ops.greedy import fake_order, native_kernel, take_row, too_many_tokens
from ocvtp_kernels.ops.ordering import first_of_highest, nan_last
from ocvtp_kernels.ops.registry import Upcast, op


def _check(points: Tensor, budget: int) -> None:
    checks.require_rank("points", points, "B, N, D")
    checks.require_floating("points", points)
    checks.require_nonempty("points", points, 1, "token")
    checks.require_budget(budget, points.shape[1])


@op(
    check=_check,
    fake=lambda points, budget: fake_order(points, budget),
    cpu=native_kernel("pivot_select"),
    triton="triton",
    unsupported={"triton": lambda points: too_many_tokens(points)},
    reference=Upcast(),
)
def pivot_select(points: Tensor, budget: int) -> Tensor:
    """Farthest-point greedy by Euclidean distance, from the point of largest L1 norm.

    Source: VLM-Pruner, arXiv 2512.02700, stage 1. Squared distances order alike and are summed
    over differences, which do not cancel.

    Args:
        points: ``[B, N, D]`` keys, any floating dtype.
        budget: 1 to N.

    Returns:
        int64 ``[B, budget]``, in the order picked, distinct.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit, or the budget is
            not within 1 to N; the message names it.
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
