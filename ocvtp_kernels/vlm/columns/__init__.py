"""Models whose prompt keeps its placeholders: the columns of dropped tokens are taken out inside.

A column is one token position of all prompts of a batch. Here is what dropping columns needs;
`pruning` does it to a model of any family of M-RoPE positions, `encoder` encodes its images.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

IGNORED_LABEL = -100
# Arguments by which flash attention is told where the samples of packed rows begin.
BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k")


def join_ids(ids: list[Tensor], sizes: list[int]) -> Tensor:
    """Ids int64 ``[T_i]`` of each image as ids among the tokens of all images in a row.

    Args:
        ids: at least one image's.
        sizes: tokens of each image.
    """
    if len(ids) == 1:
        return ids[0]
    starts = accumulate(sizes[:-1], initial=0)
    return torch.cat([start + image for start, image in zip(starts, ids, strict=True)])


def drop_placeholders(
    attended: Tensor, is_image: Tensor, ids: list[Tensor], sizes: list[int]
) -> Tensor:
    """Which columns are kept: bool ``[B, L]``, from the ids kept of each image, row by row.

    Args:
        attended: bool ``[B, L]``, False on padding.
        is_image: bool ``[B, L]``, the placeholders, none of them padding; ``sum(sizes)`` of them.
        ids: int64 ``[T_i]`` of each image.
        sizes: tokens of each image.
    """
    if not ids:
        return attended
    flags = torch.zeros(sum(sizes), dtype=torch.bool, device=is_image.device)
    flags.index_fill_(0, join_ids(ids, sizes).to(is_image.device), True)
    return attended.masked_scatter(is_image, flags)


def text_positions(attended: Tensor) -> Tensor:
    """Consecutive positions, int64 ``[B, L]``; padding repeats the one before it, 0 in front."""
    return (attended.cumsum(-1) - 1).clamp_(min=0)


def renumber(positions: Tensor, columns: Tensor, valid: Tensor) -> Tensor:
    """Positions of kept columns that go on telling apart the samples packed into a row.

    Transformers takes every position that does not follow the one before for the first of a sample.

    Args:
        positions: int64 ``[B or 1, L]``, of all columns.
        columns: int64 ``[B, W]``, the kept ones.
        valid: bool ``[B, W]``, False on padding, which is on the left.

    Returns:
        int64 ``[B, W]``, consecutive from 0 in each sample; 0 on padding.
    """
    samples = pad((positions.diff(dim=1) != 1).cumsum(1), (1, 0))
    samples = samples.expand(len(columns), -1).gather(1, columns).masked_fill(~valid, -1)
    is_first = pad(samples.diff(dim=1) != 0, (1, 0), value=True)
    rank = torch.arange(columns.shape[1], device=columns.device).expand_as(columns)
    first = rank.masked_fill(~is_first, 0).cummax(1).values
    return (rank - first).masked_fill(~valid, 0)


def require_one_sample(positions: Tensor) -> None:
    """Raises NotImplementedError if positions ``[B, L]`` pack samples; waits for the device.

    For rows of different numbers of kept columns whose padding only a mask can hide, beside which
    transformers tells no samples apart.
    """
    if (positions.diff() != 1).any():
        raise NotImplementedError(
            "position_ids: rows of several samples that keep different numbers of columns are "
            "not supported here; with use_cache=False sdpa and eager attention take them, but no "
            "linear attention"
        )


def kept_bounds(given: dict[str, Any], is_kept: Tensor, is_padded: bool) -> dict[str, Tensor]:
    """The `BOUNDS` among the arguments of a call, among the kept columns.

    Args:
        given: the arguments.
        is_kept: bool ``[B, L]``.
        is_padded: whether rows keep different numbers of columns.
    """
    bounds = {name: given[name] for name in BOUNDS if given.get(name) is not None}
    if bounds and is_padded:
        raise NotImplementedError(
            f"{', '.join(bounds)}: expected rows that keep as many columns each, since padding "
            "belongs to no sample"
        )
    return {name: move_bounds(bound, is_kept) for name, bound in bounds.items()}


def move_bounds(bounds: Tensor, is_kept: Tensor) -> Tensor:
    """Bounds of packed samples ``[S + 1]`` among all columns, among the kept ones.

    Args:
        bounds: of the rows one behind the other.
        is_kept: bool ``[B, L]``; every row keeps as many.
    """
    return pad(is_kept.flatten().cumsum(0), (1, 0))[bounds.long()].to(bounds.dtype)
