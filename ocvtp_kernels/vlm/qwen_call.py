"""Reads the arguments of a Qwen2.5-VL call: images, padding, positions, limits, and the cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels.vlm.columns import cached_length
from ocvtp_kernels.vlm.layer_call import read_cache
from ocvtp_kernels.vlm.qwen_positions import (
    History,
    Prompt,
    lengthen,
    new_images,
    next_position,
    recall,
)

IMAGE, VIDEO = 1, 2  # in mm_token_type_ids


def read_grids(given: dict[str, Any]) -> list[list[int]]:
    """Patches of each image: time, height, width. Waits for the device, as the model itself does.

    Raises:
        ValueError: there are pixels but no grids.
    """
    if given.get("pixel_values") is None:
        return []
    if given.get("image_grid_thw") is None:
        raise ValueError("image_grid_thw: needed with pixel_values, got None")
    grids: list[list[int]] = given["image_grid_thw"].tolist()
    return grids


def read_mask(model: Any, input_ids: Tensor, given: dict[str, Any]) -> Tensor:
    """Which columns are no padding: bool ``[B, L]``.

    Raises:
        ValueError: the mask has another shape.
    """
    mask = given.get("attention_mask")
    if mask is None:
        # As generate does: a padding token that is also an end token marks no padding.
        pad, eos = model.generation_config.pad_token_id, model.generation_config.eos_token_id
        if pad is None or pad in (eos if isinstance(eos, list) else [eos]):
            return torch.ones_like(input_ids, dtype=torch.bool)
        return input_ids != pad
    if mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask: expected {list(input_ids.shape)} as input_ids, which holds the whole "
            f"conversation, got {list(mask.shape)}"
        )
    return mask.bool()


def read_history(
    model: Any,
    input_ids: Tensor,
    attended: Tensor,
    is_image: Tensor,
    sizes: list[int],
    given: dict[str, Any],
) -> History | None:
    """The columns of the conversation in the cache, pruned or not; None if it is empty.

    Args:
        model: the model.
        input_ids: int64 ``[B, L]``, the whole conversation.
        attended: bool ``[B, L]``, False on padding.
        is_image: bool ``[B, L]``, the placeholders.
        sizes: tokens of each image given.
        given: the arguments of the call.

    Raises:
        ValueError: the cache is of another conversation, or holds images that are not given.
    """
    cache = read_cache(given)
    length = cached_length(cache)
    if length == 0:
        return None
    history = recall(cache)
    if history is None:
        before, both = is_image[:, :length].sum(1).tolist(), is_image.sum(1).tolist()
        if sum(before) and sum(sizes) != sum(both):
            raise ValueError(
                "pixel_values: expected all images of the conversation, because past_key_values "
                "does not tell the positions of those before"
            )
        old = new_images(sizes, [0] * len(both), both)
        new = new_images(sizes, before, [b - a for a, b in zip(before, both, strict=True)])
        old = [image for image in old if image not in new]
        prompt = positions_of(model, input_ids[:, :length], attended[:, :length], old, given)
        columns = torch.arange(length, device=input_ids.device).expand(len(input_ids), -1)
        history = History(columns, prompt.attended, length, next_position(prompt.positions))
    return lengthen(history, attended, length)


def positions_of(
    model: Any, input_ids: Tensor, attended: Tensor, images: list[int], given: dict[str, Any]
) -> Prompt:
    """A part of a conversation with its positions, counted as if nothing were before it.

    Args:
        model: the model.
        input_ids: int64 ``[B, L]``, the part.
        attended: bool ``[B, L]``, False on padding.
        images: indices of the part's images among those given.
        given: the arguments of the call.

    Raises:
        NotImplementedError: ``position_ids`` were given with a cache.
    """
    positions = given.get("position_ids")
    if positions is not None and cached_length(read_cache(given)):
        raise NotImplementedError("position_ids: expected none with past_key_values")
    if positions is None:
        types = _read_types(model, input_ids, given)
        positions, _ = model.model.get_rope_index(
            input_ids,
            mm_token_type_ids=types,
            image_grid_thw=_take_grids(given, images),
            video_grid_thw=given.get("video_grid_thw"),
            second_per_grid_ts=given.get("second_per_grid_ts"),
            attention_mask=attended,
        )
    elif positions.ndim == 3:
        positions = positions[-3:]  # without the row for text
    return Prompt(input_ids, attended, positions.expand(3, *input_ids.shape))


def _read_types(model: Any, input_ids: Tensor, given: dict[str, Any]) -> Tensor:
    """``mm_token_type_ids`` ``[B, L]`` of a part of the conversation: as given, or made."""
    types: Tensor | None = given.get("mm_token_type_ids")
    if types is not None and not cached_length(read_cache(given)):
        return types
    made = (input_ids == model.config.image_token_id) * IMAGE
    made += (input_ids == model.config.video_token_id) * VIDEO
    return made


def _take_grids(given: dict[str, Any], images: list[int]) -> Tensor | None:
    """``image_grid_thw`` of some of the images given; None of none."""
    if not images:
        return None
    grid: Tensor = given["image_grid_thw"]
    return grid if len(images) == len(grid) else grid[images]


def read_filler(model: Any) -> int:
    """A token for unused columns: the padding token, or the first."""
    pad = getattr(model.generation_config, "pad_token_id", None)
    return 0 if pad is None else int(pad)


def shift_lengths(model: Any, given: dict[str, Any], dropped: int) -> dict[str, int]:
    """The length limits that include the prompt, less its dropped columns."""
    configs = (given.get("generation_config"), model.generation_config)
    sources = [given, *(vars(config) for config in configs if config is not None)]

    def limit(name: str) -> int | None:
        return next((source[name] for source in sources if source.get(name) is not None), None)

    limits = {}
    for side in ("max", "min"):
        length = limit(f"{side}_length")
        if length is not None and limit(f"{side}_new_tokens") is None:
            limits[f"{side}_length"] = max(length - dropped, 0)
    return limits


def take_images(pixel_values: Tensor, grids: list[list[int]], images: list[int]) -> Tensor:
    """``pixel_values`` of some of the images given."""
    if len(images) == len(grids):
        return pixel_values
    patches = pixel_values.split([t * h * w for t, h, w in grids])
    return torch.cat([patches[image] for image in images])
