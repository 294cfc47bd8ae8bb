"""Bipartite soft matching: the tokens most like another merge into it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.dtypes import acc_dtype
from ocvtp_kernels.ops.arguments import check_by_token
from ocvtp_kernels.ops.greedy import native_kernel, too_many_tokens
from ocvtp_kernels.ops.ordering import nan_last
from ocvtp_kernels.ops.registry import Autocast, Gradient, op

MIN_NORM = 1e-12  # a key of a smaller norm is divided by this; torch's normalize does so


def first_places(num_prefix: int) -> tuple[int, int]:
    """The first even and the first odd place behind the prefix: where A and B start."""
    odd = num_prefix % 2
    return num_prefix + odd, num_prefix + 1 - odd


def side_tokens(num_tokens: int, first: int) -> int:
    """The tokens of a side that starts at ``first``, every other token."""
    return max(0, num_tokens - first + 1) // 2


def most_merged(num_tokens: int, num_prefix: int) -> int:
    """The most tokens that can merge: those of A, or none where B is empty."""
    num_a, num_b = (side_tokens(num_tokens, first) for first in first_places(num_prefix))
    return num_a if num_b > 0 else 0


def _check(tokens: Tensor, keys: Tensor, sizes: Tensor, num_merged: int, num_prefix: int) -> None:
    checks.require_rank("tokens", tokens, "B, N, C")
    checks.require_floating("tokens", tokens)
    checks.require_nonempty("tokens", tokens, 1, "token")
    checks.require_rank("keys", keys, "B, N, D")
    checks.require_floating("keys", keys)
    checks.require_same_device("keys", keys, "tokens", tokens)
    checks.require_size("keys", keys, 0, tokens.shape[0], "tokens")
    checks.require_size("keys", keys, 1, tokens.shape[1], "tokens")
    check_by_token("sizes", sizes, "tokens", tokens)
    num_tokens = tokens.shape[1]
    if num_prefix < 0 or num_prefix > num_tokens:
        raise ValueError(
            f"num_prefix: expected 0 to {num_tokens} (the tokens there are), got {num_prefix}"
        )
    most = most_merged(num_tokens, num_prefix)
    if num_merged < 0 or num_merged > most:
        raise ValueError(
            f"num_merged: expected 0 to {most} (the tokens that can merge), got {num_merged}"
        )


def _fake(tokens: Tensor, sizes: Tensor, num_merged: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, num_tokens, width = tokens.shape
    left = num_tokens - num_merged
    return (
        tokens.new_empty((batch, left, width)),
        sizes.new_empty((batch, left), dtype=acc_dtype(sizes.dtype)),
        tokens.new_empty((batch, num_tokens), dtype=torch.int64),
    )


_kernel = native_kernel("bipartite_merge")


def _native(
    tokens: Tensor, keys: Tensor, sizes: Tensor, num_merged: int, num_prefix: int
) -> tuple[Tensor, Tensor, Tensor]:
    merged, totals, assignment = _kernel(tokens, keys, sizes, num_merged, num_prefix)
    return merged.to(tokens.dtype), totals.to(acc_dtype(sizes.dtype)), assignment


def _save(ctx: Any, output: tuple[Tensor, Tensor, Tensor], tokens: Tensor, sizes: Tensor) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(sizes, *output[1:])
    ctx.dtype = tokens.dtype


def _backward(ctx: Any, grad: Tensor, *_: Any) -> dict[str, Tensor]:
    sizes, merged_sizes, assignment = ctx.saved_tensors
    total = merged_sizes.gather(1, assignment)
    # A token alone was copied, whatever its size.
    share = torch.where(sizes == total, 1.0, sizes / total).unsqueeze(-1)
    rows = grad.gather(1, assignment.unsqueeze(-1).expand(-1, -1, grad.shape[2]))
    return {"tokens": (rows * share).to(ctx.dtype)}


@op(
    outputs=("merged", "merged_sizes", "owner"),
    check=_check,
    fake=_fake,
    cpu=_native,
    triton="triton",
    unsupported={"triton": lambda tokens: too_many_tokens(tokens)},
    autocast=Autocast(no_autocast=("tokens", "keys", "sizes")),
    gradient=Gradient(_save, _backward),
)
def bipartite_merge(
    tokens: Tensor, keys: Tensor, sizes: Tensor, num_merged: int, num_prefix: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Merges the tokens most like another into it.

    A are the tokens at even places, B those at odd ones, both without the prefix. Each a of A has
    ``score_a = max over b in B of cos(keys_a, keys_b)``, a key of norm 0 having cosine 0. The
    ``num_merged`` tokens of A with the largest scores merge into their b; ties go to the lowest
    place, for a and for b, and a score that is NaN comes last. A token b and those merged into it
    become ``sum size_n token_n / sum size_n``, of size ``sum size_n``; any other is copied as it
    is. Those left stay in order. Differentiable in ``tokens`` alone.
    Source: ToMe (arXiv 2210.09461), section 3.

    Args:
        tokens: ``[B, N, C]``, any floating dtype.
        keys: ``[B, N, D]``, any floating dtype: the mean over heads of an attention layer's keys.
        sizes: floating ``[B, N]``: the patches that each token stands for, not negative.
        num_merged: r, 0 to (N - P) / 2, rounded up if P is even: the tokens of A; 0 where B is
            empty.
        num_prefix: P, 0 to N: the tokens in front that neither merge nor are merged into.

    Returns:
        merged ``[B, N - r, C]`` in the dtype of ``tokens``; merged_sizes ``[B, N - r]`` in float32
        or wider; and assignment int64 ``[B, N]``, the row of the result that each token went to;
        the schema calls it ``owner``. Cosines and sums are in float32 or wider.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit, or ``num_merged``
            or ``num_prefix`` is out of its range; the message names it.
    """
    batch, num_tokens, width = tokens.shape
    totals = sizes.to(acc_dtype(sizes.dtype), copy=True)
    place = torch.arange(num_tokens, device=tokens.device).expand(batch, -1)
    if num_merged == 0:
        return tokens.clone(), totals, place.clone()
    first_a, first_b = first_places(num_prefix)
    keys = keys.to(acc_dtype(keys.dtype))
    norm = torch.linalg.vector_norm(keys, dim=2, keepdim=True)
    keys = keys / norm.clamp_min(MIN_NORM)
    cosine = nan_last(torch.matmul(keys[:, first_a::2], keys[:, first_b::2].mT))
    score = cosine.amax(dim=2)
    # Argmax may name any of the highest: the first comes from a comparison.
    target = first_b + 2 * (cosine == score.unsqueeze(2)).to(torch.uint8).argmax(dim=2)
    by_score = score.argsort(dim=1, descending=True, stable=True)
    chosen = by_score[:, :num_merged].sort(dim=1).values
    source, target = first_a + 2 * chosen, target.gather(1, chosen)

    is_left = torch.ones_like(place, dtype=torch.bool).scatter(1, source, False)
    row = is_left.cumsum(dim=1) - 1
    assignment = row.scatter(1, source, row.gather(1, target))
    left = is_left.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    left = left[:, : num_tokens - num_merged]

    is_into = left.unsqueeze(2) == target.unsqueeze(1)
    own_size = totals.gather(1, left)
    weight = torch.where(is_into, totals.gather(1, source).unsqueeze(1), 0.0)
    totals = own_size + weight.sum(dim=2)
    wide = torch.promote_types(acc_dtype(tokens.dtype), totals.dtype)

    def rows_of(places: Tensor) -> Tensor:
        return tokens.gather(1, places.unsqueeze(-1).expand(-1, -1, width))

    kept = rows_of(left)
    sums = own_size.unsqueeze(2) * kept.to(wide)
    sums = sums + torch.matmul(weight.to(wide), rows_of(source).to(wide))
    merged = (sums / totals.unsqueeze(2)).to(tokens.dtype)
    return torch.where(is_into.any(dim=2, keepdim=True), merged, kept), totals, assignment
