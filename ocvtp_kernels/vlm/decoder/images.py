"""Images of a prompt that is pruned in the decoder: encoded once, with their grids.

They are encoded before the model's forward runs, which needs to know their sizes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.vlm.family import ImageReference, InDecoder, Tiles, WatchReference
from ocvtp_kernels.vlm.handle import CallRecord, Handle
from ocvtp_kernels.vlm.intercept import Intercepts
from ocvtp_kernels.vlm.layer_call import CALL
from ocvtp_kernels.vlm.replaced import Method

OUTPUTS = "mm_encoder_outputs"  # by which models of transformers >= 5.19 take encoded images
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
_MARK, _ENCODED = "_ocvtp_mark", "_ocvtp_encoded"  # attributes of features and of pixels


class Mark(NamedTuple):
    """What an image's features carry, since generate passes them on, beams included."""

    record: CallRecord  # of the call that encoded it
    grid: tuple[int, int] | None  # rows and columns; None: its tokens are no grid
    reference: ImageReference | None  # None where no selector reads it


def mark_images(
    in_decoder: InDecoder,
    tiles: Tiles | None,
    watch: WatchReference | None,
    handle: Handle,
    original: Method,
    inner: Any,
    given: dict[str, Any],
) -> Any:
    """`get_image_features`, timed, with a `Mark` on the features of every image, or every tile.

    Args:
        in_decoder: what the model's family tells.
        tiles: see `InDecoder.read_tiles`.
        watch: see `InDecoder.find_reference`; None where no selector reads reference tokens.
        handle: of the selector.
        original, inner, given: see `Replaced`.
    """
    if (encoded := _take_encoded(given, "image")) is not None:
        return encoded
    record, intercepts = handle.begin(), Intercepts()
    read = None if watch is None else watch(inner, given, intercepts)
    with record.stage("encoder", given["pixel_values"].device), intercepts.active():
        output = original(**given)
    features = getattr(output, "pooler_output", None)
    if features is not None:
        if tiles is not None:
            units = tiles.count_units(inner, given["pixel_values"])
            # Parts are of rows, some without images.
            features = [tile for part in features if len(part) for tile in part.split(units)]
            output.pooler_output = features
        read_grids = in_decoder.read_grids
        grids: Iterable[Any] = repeat(None) if read_grids is None else read_grids(inner, given)
        references: Iterable[Any] = repeat(None) if read is None else read()
        for feature, grid, reference in zip(features, grids, references, strict=False):
            setattr(feature, _MARK, Mark(record, grid, reference))
    return output


def reuse_encoded_videos(original: Method, _inner: Any, given: dict[str, Any]) -> Any:
    """`get_video_features`, or what `hand_over` stored on the pixels."""
    encoded = _take_encoded(given, "video")
    return original(**given) if encoded is None else encoded


def takes_outputs(forward: Callable[..., Any]) -> bool:
    """Whether a model takes encoded images and videos, as from transformers 5.19 on."""
    return OUTPUTS in inspect.signature(forward).parameters


def hand_over(given: dict[str, Any], outputs: dict[str, Any], by_name: bool) -> None:
    """Makes the arguments of a model's forward hold the encoder's outputs instead of pixels.

    A model without such an argument calls its encoder again, which finds them on the pixels.
    """
    if by_name:
        given |= {OUTPUTS: outputs} | {PIXELS[modality]: None for modality in outputs}
        return
    for modality, output in outputs.items():
        pixels = given[PIXELS[modality]]
        given[PIXELS[modality]] = pixels.view_as(pixels)  # the caller's tensor stays unchanged
        setattr(given[PIXELS[modality]], _ENCODED, output)


def _take_encoded(given: dict[str, Any], modality: str) -> Any:
    """What `hand_over` stored on the pixels of a call of the encoder, or None."""
    given.pop(CALL, None)  # such a model passes arguments it does not know on to its encoder
    return getattr(given.get(PIXELS[modality]), _ENCODED, None)


def encode(inner: Any, given: dict[str, Any], modality: str) -> Any:
    """The encoder's output for the images or videos of a call, as the model itself calls it."""
    run = getattr(inner, f"get_{modality}_features")
    names = inspect.signature(run).parameters
    arguments = {name: given[name] for name in names if given.get(name) is not None}
    return run(**arguments, return_dict=True)


def read_mark(feature: Tensor) -> Mark | None:
    """What `mark_images` stored on an image's features, or None."""
    mark: Mark | None = getattr(feature, _MARK, None)
    return mark


def require_mark(feature: Tensor) -> Mark:
    """What `mark_images` stored on an image's features.

    Raises:
        ValueError: there is nothing, or its grid does not fit the number of tokens.
    """
    mark = read_mark(feature)
    if mark is None or (mark.grid is not None and math.prod(mark.grid) != len(feature)):
        raise ValueError(
            f"mm_encoder_outputs: expected what get_image_features gives while the selector is "
            f"attached, whole images of one token a patch; got an image of {len(feature)} tokens "
            f"whose grid is {mark.grid if mark else 'unknown'}"
        )
    return mark


def join_tiles(tiles: Sequence[Mark]) -> Mark:
    """What is known of an image, of what its tiles carry."""
    first = tiles[0]
    parts = [tile.reference.tokens for tile in tiles if tile.reference is not None]
    if len(tiles) == 1 or not parts:
        return first
    return first._replace(reference=ImageReference(torch.cat(parts)))


def find_image_rows(placeholders: list[int], sizes: Sequence[int]) -> list[int]:
    """The row that each image is in.

    Args:
        placeholders: of each row.
        sizes: tokens of each image, row by row.

    Raises:
        ValueError: the images do not fit the placeholders.
    """
    ends = list(accumulate(placeholders))
    rows, row, end = list[int](), 0, 0
    for size in sizes:
        end += size
        while row < len(ends) and ends[row] < end:
            row += 1
        if row == len(ends) or end - size < ends[row] - placeholders[row]:
            break
        rows.append(row)
    else:
        if end == sum(placeholders):
            return rows
    raise ValueError(
        f"input_ids: rows of {placeholders} image placeholders, which are no whole images; "
        f"the images have {list(sizes)} tokens"
    )


def count_columns(
    attended: list[int], rows: Sequence[int], sizes: Sequence[int], kept: Sequence[int]
) -> list[int]:
    """Columns that each row keeps.

    Args:
        attended: columns of each row that are no padding.
        rows: of each image.
        sizes: tokens of each image.
        kept: tokens kept of each.
    """
    columns = list(attended)
    for row, size, count in zip(rows, sizes, kept, strict=True):
        columns[row] -= size - count
    return columns
