"""Weighted sums of tokens by what they are assigned to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.dtypes import acc_dtype
from ocvtp_kernels.ops.arguments import check_by_token
from ocvtp_kernels.ops.greedy import check_ids, native_kernel
from ocvtp_kernels.ops.registry import Gradient, Upcast, op


def is_assigned(assignment: Tensor, num_owners: int) -> Tensor:
    """Whether a token is assigned to one of 0 to ``num_owners - 1``."""
    return (assignment >= 0) & (assignment < num_owners)


def _check(tokens: Tensor, assignment: Tensor, weight: Tensor, num_owners: int) -> None:
    checks.require_rank("tokens", tokens, "B, N, C")
    checks.require_floating("tokens", tokens)
    check_ids("assignment", assignment, "B, N", "tokens", tokens)
    checks.require_size("assignment", assignment, 1, tokens.shape[1], "tokens")
    check_by_token("weight", weight, "tokens", tokens)
    checks.require_at_least("num_owners", num_owners, 1)


def _fake(tokens: Tensor, weight: Tensor, num_owners: int) -> tuple[Tensor, Tensor]:
    batch, _, width = tokens.shape
    wide = torch.promote_types(acc_dtype(tokens.dtype), acc_dtype(weight.dtype))
    return (
        tokens.new_empty((batch, num_owners, width), dtype=wide),
        tokens.new_empty((batch, num_owners), dtype=wide),
    )


def _save(
    ctx: Any,
    output: tuple[Tensor, Tensor],
    tokens: Tensor,
    assignment: Tensor,
    weight: Tensor,
    num_owners: int,
) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(assignment, weight)
    ctx.num_owners, ctx.dtype = num_owners, tokens.dtype


def _backward(ctx: Any, grad: Tensor, _: Any) -> dict[str, Tensor]:
    assignment, weight = ctx.saved_tensors
    assigned = is_assigned(assignment, ctx.num_owners).unsqueeze(-1)
    rows = assignment.unsqueeze(-1).masked_fill(~assigned, 0).expand(-1, -1, grad.shape[2])
    # A weight of 0 would make NaN of a gradient that is not finite.
    grads = (grad.gather(1, rows) * weight.unsqueeze(-1)).masked_fill(~assigned, 0)
    return {"tokens": grads.to(ctx.dtype)}


@op(
    outputs=("sums", "mass"),
    check=_check,
    fake=_fake,
    cpu=native_kernel("scatter_merge"),
    triton="triton",
    reference=Upcast(),
    gradient=Gradient(_save, _backward),
)
def scatter_merge(
    tokens: Tensor, assignment: Tensor, weight: Tensor, num_owners: int
) -> tuple[Tensor, Tensor]:
    """Weighted sums of the tokens by what they are assigned to.

    With ``a_n`` the assignment, ``sum_t = sum_{n: a_n = t} weight_n tokens_n`` and
    ``mass_t = sum_{n: a_n = t} weight_n``. Differentiable in ``tokens`` alone.
    Source: the merging of VisionZip (arXiv 2412.04467) and VLM-Pruner (arXiv 2512.02700).

    Args:
        tokens: ``[B, N, C]``, any floating dtype.
        assignment: int64 ``[B, N]``, 0 to num_owners - 1; anything else, such as -1, is none: such
            a token is in no sum and has no gradient. The schema calls it ``owner``.
        weight: floating ``[B, N]``.
        num_owners: T, at least 1.

    Returns:
        sums ``[B, T, C]`` and mass ``[B, T]``, in float32 or wider, the wider of both dtypes.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit; the message names
            it.
    """
    wide = torch.promote_types(tokens.dtype, weight.dtype)
    places = torch.arange(num_owners, device=assignment.device)
    is_own = assignment[:, None] == places[:, None]
    weights = torch.where(is_own, weight[:, None], 0.0).to(wide)
    # A weight of 0 would make NaN of a token that is NaN.
    rows = tokens.to(wide).masked_fill(~is_assigned(assignment, num_owners)[..., None], 0)
    return torch.matmul(weights, rows), weights.sum(dim=2)
