"""Farthest-point greedy selection on a matrix of distances."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.ops.greedy import (
    check_ids,
    check_square,
    fake_order,
    native_kernel,
    require_ids,
    take_row,
    too_many_tokens,
)
from ocvtp_kernels.ops.ordering import first_of_highest, nan_last
from ocvtp_kernels.ops.registry import Upcast, op


def _check(distances: Tensor, first: Tensor | None, budget: int) -> None:
    check_square("distances", distances)
    if first is not None:
        check_ids("first", first, "B", "distances", distances)
    checks.require_budget(budget, distances.shape[1])


def _check_values(distances: Tensor, first: Tensor | None) -> None:
    if first is not None:
        require_ids("first", first, distances.shape[1])


@op(
    check=_check,
    values=_check_values,
    fake=lambda distances, budget: fake_order(distances, budget),
    cpu=native_kernel("farthest_select"),
    triton="triton",
    unsupported={"triton": lambda distances: too_many_tokens(distances)},
    reference=Upcast(),
)
def farthest_select(
    distances: Tensor, first: Tensor | None, budget: int, distinct: bool = True
) -> Tensor:
    """Farthest-point greedy: each pick is the token farthest from its nearest pick.

    ``j_t = argmax_j min_{s < t} distances[j_s, j]``. Source: DivPrune, arXiv 2503.02175.

    Args:
        distances: ``[B, N, N]``, any floating dtype.
        first: int64 ``[B]`` first picks; None takes the token whose nearest other is farthest:
            the argmax over columns of a column's second smallest distance.
        budget: T, 1 to N.
        distinct: whether a token is picked once only; the published code relies on a token's
            distance to itself being the smallest, and picks duplicates twice.

    Returns:
        int64 ``[B, T]``, in the order picked.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit, or the budget is
            not within 1 to N; the message names it. Ids are looked at on a CPU alone.
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
