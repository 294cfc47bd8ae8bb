"""Greedy MAP inference of a determinantal point process."""

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
from ocvtp_kernels.ops.ordering import first_of_highest, nan_last
from ocvtp_kernels.ops.registry import Upcast, op

TINY = 1e-12  # of a variance that nothing is left of


def _check(similarity: Tensor, quality: Tensor, budget: int) -> None:
    check_square("similarity", similarity)
    check_by_token("quality", quality, "similarity", similarity)
    checks.require_budget(budget, similarity.shape[1])


@op(
    check=_check,
    fake=lambda similarity, budget: fake_order(similarity, budget),
    cpu=native_kernel("dpp_select"),
    triton="triton",
    unsupported={"triton": lambda similarity: too_many_tokens(similarity)},
    reference=Upcast(),
)
def dpp_select(similarity: Tensor, quality: Tensor, budget: int) -> Tensor:
    """Greedy MAP inference of a determinantal point process ``L = q_i S_ij q_j``.

    With ``v = diag(L)``: pick ``j = argmax v``; ``C_t = (L_j - sum_{s<t} C_sj C_s) / sqrt(v_j)``;
    ``v -= C_t^2``. Source: CDPruner, arXiv 2506.10967, by Chen et al. 2018. Where ``v_j`` is at
    most 1e-12 of the image's largest ``L_ii`` nothing is left to explain, and ``C_t`` is 0: the
    published code divides by it all the same.

    Args:
        similarity: ``[B, N, N]``, any floating dtype; quality: ``[B, N]``.
        budget: T, 1 to N.

    Returns:
        int64 ``[B, T]``, in the order picked, distinct.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit, or the budget is
            not within 1 to N; the message names it.
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
