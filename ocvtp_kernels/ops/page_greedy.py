"""Ops of the greedy selections that the training-free pruners share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.dtypes import accumulate_dtype
from ocvtp_kernels.native import if_built
from ocvtp_kernels.ops import greedy as reference
from ocvtp_kernels.ops import greedy_native as native
from ocvtp_kernels.ops.centrifugal_select import reference as centrifugal
from ocvtp_kernels.ops.greedy_cpu import widened
from ocvtp_kernels.ops.registry import Gradient, define, lazy
from ocvtp_kernels.triton_common.greedy_tiles import MAX_TOKENS


def _kernels(name: str, module: str, plain: Callable[..., Any]) -> Mapping[str, Callable[..., Any]]:
    plain = widened(plain)
    return {
        "reference": plain,
        "cpu": if_built(getattr(native, name), plain),
        "triton": lazy(f"ops.{name}.triton", name),
    }


def _refuse(tokens: Tensor, *_: Any) -> str | None:
    if tokens.shape[1] > MAX_TOKENS:
        most = f"the triton greedy selections hold at most {MAX_TOKENS} tokens an image"
        return f"{most}, not {tokens.shape[1]}"
    return None


def _check_square(name: str, matrix: Tensor) -> None:
    checks.require_rank(name, matrix, "B, N, N")
    checks.require_floating(name, matrix)
    checks.require_size(name, matrix, 2, matrix.shape[1], "dimension 1")
    checks.require_some(name, matrix, 1, "token")


def _check_beside(name: str, scores: Tensor, owner: str, like: Tensor) -> None:
    """Scores ``[B, N]`` beside ``like`` ``[B, N, ...]``."""
    checks.require_rank(name, scores, "B, N")
    checks.require_floating(name, scores)
    checks.require_same_device(name, scores, owner, like)
    checks.require_size(name, scores, 0, like.shape[0], owner)
    checks.require_size(name, scores, 1, like.shape[1], owner)


def _check_ids(name: str, ids: Tensor, layout: str, owner: str, like: Tensor) -> None:
    checks.require_rank(name, ids, layout)
    if ids.dtype != torch.int64:
        raise TypeError(f"{name}: expected dtype torch.int64, got {ids.dtype}")
    checks.require_same_device(name, ids, owner, like)
    checks.require_size(name, ids, 0, like.shape[0], owner)


def _fake_order(matrix: Tensor, _: Any, budget: int, *__: Any) -> Tensor:
    return matrix.new_empty((matrix.shape[0], budget), dtype=torch.int64)


def _check_farthest(
    distances: Tensor, first: Tensor | None, budget: int, distinct: bool = True
) -> None:
    _check_square("distances", distances)
    if first is not None:
        _check_ids("first", first, "B", "distances", distances)
    checks.require_budget(budget, distances.shape[1])


define(
    "farthest_select(Tensor distances, Tensor? first, SymInt budget, bool distinct=True) -> Tensor",
    check=_check_farthest,
    fake=_fake_order,
    kernels=_kernels("farthest_select", "triton_forward", reference.farthest_select),
    refuse={"triton": _refuse},
)


def _check_pivots(points: Tensor, budget: int) -> None:
    checks.require_rank("points", points, "B, N, D")
    checks.require_floating("points", points)
    checks.require_some("points", points, 1, "token")
    checks.require_budget(budget, points.shape[1])


define(
    "pivot_select(Tensor points, SymInt budget) -> Tensor",
    check=_check_pivots,
    fake=lambda points, budget: _fake_order(points, None, budget),
    kernels=_kernels("pivot_select", "triton_forward", reference.pivot_select),
    refuse={"triton": _refuse},
)


def _check_centrifugal(
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
) -> None:
    _check_square("similarity", similarity)
    _check_ids("pivots", pivots, "B, P", "similarity", similarity)
    checks.require_some("pivots", pivots, 1, "pivot")
    if height < 1 or width < 1 or height * width != similarity.shape[1]:
        raise ValueError(
            f"height, width: expected a grid of {similarity.shape[1]} tokens, got {height}, {width}"
        )
    checks.require_budget(budget, similarity.shape[1])
    for name, value in (("spread", spread), ("step", step)):
        if not value >= 0:
            raise ValueError(f"{name}: expected at least 0, got {value}")
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1, got {chunk}")


def _fake_centrifugal(
    similarity: Tensor, pivots: Tensor, height: int, width: int, budget: int, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, num_tokens, _n = similarity.shape
    return (
        pivots.new_empty((batch, budget)),
        pivots.new_empty((batch,)),
        pivots.new_empty((batch, num_tokens)),
        similarity.new_empty((batch, num_tokens), dtype=accumulate_dtype(similarity.dtype)),
    )


define(
    "centrifugal_select(Tensor similarity, Tensor pivots, SymInt height, SymInt width,"
    " SymInt budget, float spread=0.5, float threshold=0.8, float step=0.1, SymInt chunk=16,"
    " bool pad=True) -> (Tensor order, Tensor count, Tensor owner, Tensor closeness)",
    check=_check_centrifugal,
    fake=_fake_centrifugal,
    kernels=_kernels("centrifugal_select", "x", centrifugal.centrifugal_select),
    refuse={"triton": _refuse},
)


def _check_scored(name: str) -> Callable[[Tensor, Tensor, int], None]:
    """The check of a selection that has a score a token, called ``name``, beside similarity."""

    def check(similarity: Tensor, scores: Tensor, budget: int) -> None:
        _check_square("similarity", similarity)
        _check_beside(name, scores, "similarity", similarity)
        checks.require_budget(budget, similarity.shape[1])

    return check


define(
    "dpp_select(Tensor similarity, Tensor quality, SymInt budget) -> Tensor",
    check=_check_scored("quality"),
    fake=_fake_order,
    kernels=_kernels("dpp_select", "triton_forward", reference.dpp_select),
    refuse={"triton": _refuse},
)

define(
    "facility_select(Tensor similarity, Tensor saliency, SymInt budget) -> Tensor",
    check=_check_scored("saliency"),
    fake=_fake_order,
    kernels=_kernels("facility_select", "triton_forward", reference.facility_select),
    refuse={"triton": _refuse},
)


def _check_match(similarity: Tensor, ranked: Tensor, budget: int, drop: int = 8) -> None:
    _check_square("similarity", similarity)
    _check_ids("ranked", ranked, "B, R", "similarity", similarity)
    checks.require_budget(budget, ranked.shape[1])
    if drop < 1:
        raise ValueError(f"drop: expected at least 1, got {drop}")


define(
    "match_select(Tensor similarity, Tensor ranked, SymInt budget, SymInt drop=8) -> Tensor",
    check=_check_match,
    fake=_fake_order,
    kernels=_kernels("match_select", "triton_match", reference.match_select),
    refuse={"triton": _refuse},
)


def _check_merge(tokens: Tensor, owner: Tensor, weight: Tensor, num_owners: int) -> None:
    checks.require_rank("tokens", tokens, "B, N, C")
    checks.require_floating("tokens", tokens)
    _check_ids("owner", owner, "B, N", "tokens", tokens)
    checks.require_size("owner", owner, 1, tokens.shape[1], "tokens")
    _check_beside("weight", weight, "tokens", tokens)
    if num_owners < 1:
        raise ValueError(f"num_owners: expected at least 1, got {num_owners}")


def _merged_dtype(tokens: Tensor, weight: Tensor) -> torch.dtype:
    return torch.promote_types(accumulate_dtype(tokens.dtype), accumulate_dtype(weight.dtype))


def _fake_merge(
    tokens: Tensor, owner: Tensor, weight: Tensor, num_owners: int
) -> tuple[Tensor, Tensor]:
    batch, _, width = tokens.shape
    wide = _merged_dtype(tokens, weight)
    return (
        tokens.new_empty((batch, num_owners, width), dtype=wide),
        tokens.new_empty((batch, num_owners), dtype=wide),
    )


def _save_merge(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tokens, owner, weight, ctx.num_owners = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(owner, weight)
    ctx.dtype = tokens.dtype


def _merge_backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    # In the tokens alone: weights and owners are decisions.
    owner, weight = ctx.saved_tensors
    is_owned = reference.is_owned(owner, ctx.num_owners).unsqueeze(-1)
    rows = owner.unsqueeze(-1).masked_fill(~is_owned, 0).expand(-1, -1, grad.shape[2])
    # A share of 0 would make NaN of a gradient that is not finite.
    grads = (grad.gather(1, rows) * weight.unsqueeze(-1)).masked_fill(~is_owned, 0)
    return grads.to(ctx.dtype), None, None, None


define(
    "scatter_merge(Tensor tokens, Tensor owner, Tensor weight, SymInt num_owners)"
    " -> (Tensor sums, Tensor mass)",
    check=_check_merge,
    fake=_fake_merge,
    kernels=_kernels("scatter_merge", "triton_merge", reference.scatter_merge),
    gradient=Gradient(save=_save_merge, backward=_merge_backward),
)


def _check_variance(tokens: Tensor) -> None:
    checks.require_rank("tokens", tokens, "B, N, C")
    checks.require_floating("tokens", tokens)
    checks.require_some("tokens", tokens, 1, "token")


def _fake_variance(tokens: Tensor) -> Tensor:
    batch, _, width = tokens.shape
    return tokens.new_empty((batch, width), dtype=accumulate_dtype(tokens.dtype))


# On a GPU torch's own reduction, which is as fast as memory.
define(
    "channel_variance(Tensor tokens) -> Tensor",
    check=_check_variance,
    fake=_fake_variance,
    kernels={
        "reference": widened(reference.channel_variance),
        "cpu": if_built(native.channel_variance, widened(reference.channel_variance)),
    },
)
