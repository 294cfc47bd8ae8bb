"""Reads the arguments of a LLaVA-NeXT call: sizes, crops, and which tokens the model takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels.vlm.towers import Tower


def read_size(size: Iterable[int] | Tensor) -> tuple[int, int]:
    """Height and width of an image in pixels."""
    height, width = size.tolist() if isinstance(size, Tensor) else size
    return int(height), int(width)


def read_sizes(image_sizes: Iterable[Iterable[int]] | Tensor) -> list[tuple[int, int]]:
    """Heights and widths ``[images, 2]``; of a tensor with one wait for the device."""
    rows = image_sizes.tolist() if isinstance(image_sizes, Tensor) else image_sizes
    return [read_size(row) for row in rows]


def require_patches(inner: Any, tower: Tower, strategy: str | None) -> None:
    """Raises ValueError unless the strategy leaves the patches of a crop and nothing else.

    Args:
        inner: a ``LlavaNextModel``.
        tower: its vision tower.
        strategy: of the call; the model's own if None.
    """
    strategy = inner.config.vision_feature_select_strategy if strategy is None else strategy
    prefix = tower.num_prefix
    if prefix != (strategy == "default"):
        raise ValueError(
            "vision_feature_select_strategy: expected one that leaves the patches alone of a "
            f"tower with {prefix} tokens before them, got {strategy!r}"
        )


def take_crops(pixel_values: Tensor, counts: list[int]) -> Tensor:
    """Crops of all images, ``[sum of counts, 3, H, W]``, without those that fill up a batch.

    Args:
        pixel_values: ``[images, max crops, 3, H, W]``, or the crops without padding.
        counts: crops of each image.

    Raises:
        ValueError: there are fewer crops, or other images.
    """
    if pixel_values.dim() == 5:
        images, max_crops = pixel_values.shape[:2]
        if counts == [max_crops] * images:
            return pixel_values.flatten(0, 1)
        if images == len(counts) and max_crops >= max(counts):
            parts = zip(pixel_values, counts, strict=True)
            return torch.cat([image[:count] for image, count in parts])
    elif pixel_values.dim() == 4 and pixel_values.shape[0] == sum(counts):
        return pixel_values
    raise ValueError(
        f"pixel_values: expected {counts} crops an image, as image_sizes tells, "
        f"got shape {list(pixel_values.shape)}"
    )
