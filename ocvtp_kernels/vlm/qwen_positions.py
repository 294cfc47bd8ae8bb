"""Kept columns of a Qwen2.5-VL prompt whose image placeholders were dropped, and their positions.

A kept column keeps the three positions (time, row, column of the image) that it had in the whole
prompt.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.vlm.columns import cached_length
from ocvtp_kernels.vlm.layer_call import read_cache

_HISTORY = "_ocvtp_history"


class History(NamedTuple):
    """The columns of a conversation that a key-value cache holds."""

    columns: Tensor  # int64 [B, P], of the whole conversation
    attended: Tensor  # bool [B, P], False: padding
    length: int  # columns of the whole conversation that `columns` stand for
    next_position: Tensor  # int64 [B], of the token after them


class KeptColumns(NamedTuple):
    """The kept columns of a batch of prompts."""

    input_ids: Tensor  # int64 [B, L]
    attended: Tensor  # bool [B, L]
    positions: Tensor  # int64 [3, B, L]
    columns: Tensor  # int64 [B, L], index in the whole prompt

    def behind(self, history: History, input_ids: Tensor) -> KeptColumns:
        """With the columns of a cache in front; ``input_ids`` is the whole conversation."""
        cached = history.columns
        # Cached columns are not computed again, so nothing reads their positions.
        positions = self.positions.new_zeros(3, *cached.shape)
        return KeptColumns(
            torch.cat([input_ids.gather(1, cached), self.input_ids], 1),
            torch.cat([history.attended, self.attended], 1),
            torch.cat([positions, self.positions], 2),
            torch.cat([cached, self.columns], 1),
        )


class Prompt(NamedTuple):
    """A batch of prompts, or what a prompt adds to a cache."""

    input_ids: Tensor  # int64 [B, L]
    attended: Tensor  # bool [B, L]
    positions: Tensor  # int64 [3, B, L]
    start: int = 0  # columns of the whole prompt before it

    def keep(self, is_kept: Tensor, width: int, filler: int) -> KeptColumns:
        """The kept columns (bool ``[B, L]``), padded on the left by the token ``filler``.

        ``width`` is the largest number kept of a row; counting here would wait for the device.
        """
        # Stable: dropped columns come first, kept ones stay in order.
        order = is_kept.int().argsort(dim=1, stable=True)
        order = order[:, order.shape[1] - width :]
        attended = is_kept.gather(1, order)
        input_ids = self.input_ids.gather(1, order)
        unused = ~attended
        return KeptColumns(
            # Padding may be a dropped placeholder, for which the model would expect a feature.
            input_ids.masked_fill(unused, filler),
            attended,
            self.positions.gather(2, order.expand(3, -1, -1)).masked_fill(unused, 0),
            order + self.start if self.start else order,
        )

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


def count_kept(columns: list[int], added: list[int], ids: list[Tensor], sizes: list[int]) -> int:
    """The largest number of columns that a row keeps.

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
    return max(counts)


def next_position(positions: Tensor) -> Tensor:
    """The position after each row of ``[3, B, L]``: int64 ``[B]``."""
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
        raise ValueError(
            f"past_key_values: filled by a prompt of {rows} rows and {columns} kept columns, got "
            f"{len(attended)} rows and {length} cached columns"
        )
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
    )
