"""Images of a prompt that is pruned in the decoder: encoded once, with their grids.

They are encoded before the model's forward runs, which needs to know their sizes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ocvtp_kernels.vlm.handle import CallRecord, Handle
from ocvtp_kernels.vlm.layer_call import CALL
from ocvtp_kernels.vlm.replaced import Method

OUTPUTS = "mm_encoder_outputs"  # by which models of transformers >= 5.19 take encoded images
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
_MARK, _ENCODED = "_ocvtp_mark", "_ocvtp_encoded"  # attributes of features and of pixels


class Mark(NamedTuple):
    """What an image's features carry, since generate passes them on, beams included."""

    grid: tuple[int, int]  # rows and columns
    record: CallRecord  # of the call that encoded it


def mark_images(
    read_grids: Callable[..., list[tuple[int, int]]],
    handle: Handle,
    original: Method,
    inner: Any,
    given: dict[str, Any],
) -> Any:
    """`get_image_features`, timed, with a `Mark` on every image's features."""
    if (encoded := _take_encoded(given, "image")) is not None:
        return encoded
    record = handle.begin()
    with record.stage("encoder", given["pixel_values"].device):
        output = original(**given)
    features = getattr(output, "pooler_output", None)
    if features is not None:
        for feature, grid in zip(features, read_grids(inner, given), strict=False):
            setattr(feature, _MARK, Mark(grid, record))
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


def grid_of(feature: Tensor) -> tuple[int, int]:
    """Rows and columns of an image.

    Raises:
        ValueError: there are none, or they do not fit the number of tokens.
    """
    mark = read_mark(feature)
    if mark is None or math.prod(mark.grid) != len(feature):
        raise ValueError(
            f"mm_encoder_outputs: expected what get_image_features gives while the selector is "
            f"attached, whole images of one token a patch; got an image of {len(feature)} tokens "
            f"whose grid is {mark.grid if mark else 'unknown'}"
        )
    return mark.grid
