"""A prompt that loses columns: the arguments of a call, its kept columns, what a cache holds.

A kept column keeps the position that it had in the whole prompt: with M-RoPE three (time, row,
column of the image), else one. Their number is R below.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.vlm.columns import text_positions
from ocvtp_kernels.vlm.layer_call import cached_length, read_cache

IMAGE, VIDEO = 1, 2  # in mm_token_type_ids
_HISTORY = "_ocvtp_history"


class History(NamedTuple):
    """The columns of a conversation that a key-value cache holds."""

    columns: Tensor  # int64 [B, P], of the whole conversation
    attended: Tensor  # bool [B, P], False: padding
    length: int  # columns of the whole conversation that `columns` stand for
    next_position: Tensor  # int64 [B], of the token after them
    num_axes: int  # R

    def positions_after(self, length: int, added: int, mask: Tensor | None, rows: int) -> Tensor:
        """Positions int64 ``[R, rows, added]`` of tokens that follow text behind these columns.

        Args:
            length: columns in the cache.
            added: columns to come.
            mask: bool or int ``[rows, length + added]``, or None: no padding among those behind.
            rows: of as many rows as there are here, or a multiple of them.

        Raises:
            ValueError: the cache is of other rows, or was cropped into the prompt.
        """
        prompts, columns = self.columns.shape
        if rows % prompts or length < columns:
            raise ValueError(_other_conversation(prompts, columns, rows, length))
        start, following = length - columns, self.next_position
        if mask is not None and mask.ndim == 2 and mask.shape[1] == length + added:
            behind = mask[:, columns:].long()
            counted = (behind.cumsum(1) - behind)[:, start:]
        else:
            counted = torch.arange(start, start + added, device=following.device)[None]
        positions = following.repeat_interleave(rows // prompts)[:, None] + counted
        return positions.expand(self.num_axes, -1, -1)


class KeptColumns(NamedTuple):
    """The kept columns of a batch of prompts."""

    input_ids: Tensor  # int64 [B, L]
    attended: Tensor  # bool [B, L]
    positions: Tensor  # int64 [R, B, L]
    columns: Tensor  # int64 [B, L], index in the whole prompt
    is_padded: bool  # whether a row is shorter than others

    def behind(self, history: History, input_ids: Tensor) -> KeptColumns:
        """With the columns of a cache in front; ``input_ids`` is the whole conversation."""
        cached = history.columns
        # Cached columns are not computed again, so nothing reads their positions.
        positions = self.positions.new_zeros(len(self.positions), *cached.shape)
        return KeptColumns(
            torch.cat([input_ids.gather(1, cached), self.input_ids], 1),
            torch.cat([history.attended, self.attended], 1),
            torch.cat([positions, self.positions], 2),
            torch.cat([cached, self.columns], 1),
            self.is_padded,
        )


class Prompt(NamedTuple):
    """A batch of prompts, or what a prompt adds to a cache."""

    input_ids: Tensor  # int64 [B, L]
    attended: Tensor  # bool [B, L]
    positions: Tensor  # int64 [R, B, L]
    start: int = 0  # columns of the whole prompt before it

    def keep(self, is_kept: Tensor, counts: list[int], filler: int) -> KeptColumns:
        """The kept columns (bool ``[B, L]``), padded on the left by the token ``filler``.

        ``counts`` are those kept of each row; counting here would wait for the device.
        """
        width = max(counts)
        # Stable: dropped columns come first, kept ones stay in order.
        order = is_kept.int().argsort(dim=1, stable=True)
        order = order[:, order.shape[1] - width :]
        input_ids = self.input_ids.gather(1, order)
        positions = self.positions.gather(2, order.expand(len(self.positions), -1, -1))
        columns = order + self.start if self.start else order
        if min(counts) == width:
            attended = torch.ones_like(order, dtype=torch.bool)
            return KeptColumns(input_ids, attended, positions, columns, False)
        attended = is_kept.gather(1, order)
        unused = ~attended
        # Padding may be a dropped placeholder, for which the model would expect a feature.
        input_ids, positions = (
            input_ids.masked_fill(unused, filler),
            positions.masked_fill(unused, 0),
        )
        return KeptColumns(input_ids, attended, positions, columns, True)

    def after(self, history: History) -> Prompt:
        """The same after a conversation in a cache: positions and columns count on from it."""
        offset = history.next_position[:, None] * self.attended
        return self._replace(positions=self.positions + offset, start=history.length)


def new_images(sizes: list[int], cached: list[int], added: list[int]) -> list[int]:
    """Which images a prompt adds to a cache; all of them where nothing is cached.

    Args:
        sizes: tokens of each image given, row by row.
        cached: placeholders of each row that the cache stands for.
        added: placeholders of each row that come after.

    Returns:
        Indices into ``sizes``. The images given may be the whole conversation's or the added ones.

    Raises:
        ValueError: the images do not fit the placeholders.
    """
    if sum(sizes) == sum(added):
        cached = [0] * len(added)
    indices, image = [], 0
    for row, (before, after) in enumerate(zip(cached, added, strict=True)):
        filled = 0
        while filled < before + after and image < len(sizes):
            if filled >= before:
                indices.append(image)
            filled += sizes[image]
            image += 1
        if filled != before + after:
            raise ValueError(
                f"input_ids: row {row} has {before + after} image placeholders, which are no whole "
                f"images of pixel_values; its images have {sizes} tokens"
            )
    if image < len(sizes):
        raise ValueError(
            f"pixel_values: expected the {image} images of the placeholders, got {len(sizes)}"
        )
    return indices


def count_kept(
    columns: list[int], added: list[int], ids: list[Tensor], sizes: list[int]
) -> list[int]:
    """The number of columns that each row keeps.

    Args:
        columns: of each row, without padding.
        added: placeholders among them, those of whole images.
        ids: int64 ``[T_i]`` an image, row by row.
        sizes: tokens of each image.
    """
    image, counts = 0, []
    for before, placeholders in zip(columns, added, strict=True):
        count = before - placeholders
        while placeholders > 0:
            count += len(ids[image])
            placeholders -= sizes[image]
            image += 1
        counts.append(count)
    return counts


def next_position(positions: Tensor) -> Tensor:
    """The position after each row of ``[R, B, L]``: int64 ``[B]``."""
    return positions.amax((0, 2)) + 1


def remember(output: Any, given: dict[str, Any], history: History) -> None:
    """Stores the history on the cache of a call, as an attribute that deep copies carry too."""
    cache = read_cache(output) if isinstance(output, dict) else None
    cache = read_cache(given) if cache is None else cache
    if cache is not None:
        setattr(cache, _HISTORY, history)


def recall(cache: Any) -> History | None:
    """What `remember` stored on a cache, or None."""
    history: History | None = getattr(cache, _HISTORY, None)
    # A static cache may have been reset.
    return None if cached_length(cache) == 0 else history


def lengthen(history: History, attended: Tensor, length: int) -> History:
    """The history of a cache to which generated tokens were added since.

    Args:
        history: of as many rows as there are now, or of one for every few of them.
        attended: bool ``[B, L]``, which columns of the whole conversation are no padding.
        length: columns now in the cache.

    Raises:
        ValueError: the cache is of another conversation, or was cropped into the prompt.
    """
    rows, columns = history.columns.shape
    generated = length - columns
    stop = history.length + generated
    if len(attended) % rows or generated < 0:
        raise ValueError(_other_conversation(rows, columns, len(attended), length))
    if attended.shape[1] <= stop:
        raise ValueError(
            f"input_ids: expected the whole conversation, more than the {stop} tokens that "
            f"past_key_values stands for, got {attended.shape[1]}"
        )
    repeats = len(attended) // rows
    added = torch.arange(history.length, stop, device=attended.device).expand(len(attended), -1)
    is_added = attended[:, history.length : stop]
    return History(
        torch.cat([history.columns.repeat_interleave(repeats, 0), added], 1),
        torch.cat([history.attended.repeat_interleave(repeats, 0), is_added], 1),
        stop,
        history.next_position.repeat_interleave(repeats, 0) + is_added.sum(1),
        history.num_axes,
    )


def _other_conversation(prompts: int, columns: int, rows: int, length: int) -> str:
    return (
        f"past_key_values: filled by a prompt of {prompts} rows and {columns} kept columns, got "
        f"{rows} rows and {length} cached columns"
    )


def read_sizes(model: Any, given: dict[str, Any]) -> tuple[list[list[int]], list[int]]:
    """Patches of each image (time, height, width), and its merged tokens.

    Waits for the device, as the model itself does.

    Raises:
        ValueError: there are pixels but no grids.
    """
    if given.get("pixel_values") is None:
        return [], []
    if given.get("image_grid_thw") is None:
        raise ValueError("image_grid_thw: needed with pixel_values, got None")
    grids: list[list[int]] = given["image_grid_thw"].tolist()
    unit = model.config.vision_config.spatial_merge_size**2
    return grids, [t * h * w // unit for t, h, w in grids]


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
        following, axes = next_position(prompt.positions), len(prompt.positions)
        history = History(columns, prompt.attended, length, following, axes)
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
    is_multimodal = hasattr(model.model, "get_rope_index")
    if positions is None and is_multimodal:
        types = _read_types(model, input_ids, given)
        positions, _ = model.model.get_rope_index(
            input_ids,
            mm_token_type_ids=types,
            image_grid_thw=_take_grids(given, images),
            video_grid_thw=given.get("video_grid_thw"),
            second_per_grid_ts=given.get("second_per_grid_ts"),
            attention_mask=attended,
        )
    elif positions is None:
        positions = text_positions(attended)
    elif positions.ndim == 3:
        positions = positions[-3:]  # without the row for text
    return Prompt(
        input_ids, attended, positions.expand(3 if is_multimodal else 1, *input_ids.shape)
    )


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
