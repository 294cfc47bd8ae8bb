"""Columns of a prompt whose image placeholders were dropped, and where they stood before.

A column is one token position of a batch of prompts. Kept columns keep the three positions (time,
row, column of the image) that they had in the whole prompt, so nothing moves when others go.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.vlm.layer_call import read_cache

_HISTORY = "_ocvtp_history"


class History(NamedTuple):
    """What a key-value cache holds of a conversation that its user sees whole."""

    columns: Tensor  # int64 [B, P], of the whole conversation
    attended: Tensor  # bool [B, P], False: padding
    length: int  # columns of the whole conversation that `columns` stand for
    next_position: Tensor  # int64 [B], of the token after them


class Kept(NamedTuple):
    """The columns that are left of a batch of prompts."""

    input_ids: Tensor  # int64 [B, L]
    attended: Tensor  # bool [B, L]
    positions: Tensor  # int64 [3, B, L]
    columns: Tensor  # int64 [B, L], where the tokens stand in the whole prompt

    def behind(self, history: History, input_ids: Tensor) -> Kept:
        """With the columns of a cache in front; ``input_ids`` is the whole conversation."""
        cached = history.columns
        # Cached columns are not computed again, so nothing asks where they stand.
        positions = self.positions.new_zeros(3, *cached.shape)
        return Kept(
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
    start: int = 0  # columns of the whole prompt that stand before

    def keep(self, kept: Tensor, width: int, filler: int) -> Kept:
        """The columns that are ``kept`` (bool ``[B, L]``), padded on the left by ``filler``.

        ``width`` is the largest number kept of a row; counting here would wait for the device.
        """
        # Stable, so what is dropped comes first and what is kept stays in order.
        order = kept.int().argsort(dim=1, stable=True)
        order = order[:, order.shape[1] - width :]
        attended = kept.gather(1, order)
        input_ids = self.input_ids.gather(1, order)
        unused = ~attended
        return Kept(
            # What fills a row up may be a dropped placeholder, and would ask for a feature.
            input_ids.masked_fill(unused, filler),
            attended,
            self.positions.gather(2, order.expand(3, -1, -1)).masked_fill(unused, 0),
            order + self.start if self.start else order,
        )

    def after(self, history: History) -> Prompt:
        """Counted on from a conversation before."""
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
    chosen, image = [], 0
    for row, (before, after) in enumerate(zip(cached, added, strict=True)):
        filled = 0
        while filled < before + after and image < len(sizes):
            if filled >= before:
                chosen.append(image)
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
    return chosen


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
    """Which columns stay: bool ``[B, L]``, from the ids kept of each image, row by row.

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


def text_positions(attended: Tensor) -> Tensor:
    """Consecutive positions, as transformers counts them: int64 ``[B, L]``, 0 on padding."""
    positions = attended.cumsum(-1) - 1
    return positions.masked_fill(~attended, 0)


def next_position(positions: Tensor) -> Tensor:
    """The position after each row of ``[3, B, L]``: int64 ``[B]``."""
    return positions.amax((0, 2)) + 1


def remember(output: Any, given: dict[str, Any], history: History) -> None:
    """Writes onto the cache of a call what it holds; a deep copy of the cache knows it too."""
    cache = read_cache(output) if isinstance(output, dict) else None
    cache = read_cache(given) if cache is None else cache
    if cache is not None:
        setattr(cache, _HISTORY, history)


def recall(cache: Any) -> History | None:
    """What `remember` wrote onto a cache, or None."""
    history: History | None = getattr(cache, _HISTORY, None)
    # A static cache is reset and used again.
    return None if cached_length(cache) == 0 else history


def cached_length(cache: Any) -> int:
    """Columns in a key-value cache, 0 without one."""
    return 0 if cache is None else int(cache.get_seq_length())


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
    fresh = torch.arange(history.length, stop, device=attended.device).expand(len(attended), -1)
    seen = attended[:, history.length : stop]
    return History(
        torch.cat([history.columns.repeat_interleave(repeats, 0), fresh], 1),
        torch.cat([history.attended.repeat_interleave(repeats, 0), seen], 1),
        stop,
        history.next_position.repeat_interleave(repeats, 0) + seen.sum(1),
    )
