"""Columns of a batch of prompts: which are kept when image tokens are dropped, and what is cached.

A column is one token position of all prompts of a batch.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor


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
    """Consecutive positions, as transformers counts them: int64 ``[B, L]``, 0 on padding."""
    positions = attended.cumsum(-1) - 1
    return positions.masked_fill(~attended, 0)


def cached_length(cache: Any) -> int:
    """Columns in a key-value cache, 0 without one."""
    return 0 if cache is None else int(cache.get_seq_length())
