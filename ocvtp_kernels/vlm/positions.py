"""Kept tokens at the positions that they have in the whole prompt, though the prompt is shorter.

Only the rotary embedding is told of them: elsewhere transformers takes a gap in the positions for
the beginning of another sample, packed into the same row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.vlm.handle import Options
from ocvtp_kernels.vlm.intercept import Intercepts
from ocvtp_kernels.vlm.layer_call import cached_length, read_cache
from ocvtp_kernels.vlm.replaced import Method

_PLACES = "_ocvtp_places"  # on an image's features, which generate hands from call to call
_DROPPED = "_ocvtp_dropped"  # on a key-value cache, whose copies carry it too


class Places(NamedTuple):
    """Which placeholders an image keeps of those that it has without pruning."""

    kept: Tensor  # int64 [T], ascending
    whole: int  # placeholders without pruning


class Shift(NamedTuple):
    """What is added to consecutive positions."""

    columns: Tensor  # int64 [B, L], to those of a call
    following: Tensor  # int64 [B], to those of later calls

    def behind_dropped(self, counts: Tensor) -> Shift:
        """The same behind a cache whose rows have left out ``counts`` ``[B]`` positions."""
        return Shift(self.columns + counts[:, None], self.following + counts)


class Dropped(NamedTuple):
    """The positions that the rows in a cache have left out."""

    counts: Tensor  # int64 [B]
    length: int  # columns of the prompt


# The places of the images that the running call of a model encodes.
_ENCODED: ContextVar[list[Places] | None] = ContextVar("ocvtp_encoded", default=None)


def tell_places(features: Sequence[Tensor], places: Sequence[Places]) -> None:
    """Notes the places of the images' features ``[T, D]``, on them and for the running call."""
    for image, of_image in zip(features, places, strict=True):
        setattr(image, _PLACES, of_image)
    encoded = _ENCODED.get()
    if encoded is not None:
        encoded += places


@contextmanager
def apart() -> Iterator[None]:
    """Keeps places told within the block, where selectors may ask other models, from the call."""
    token = _ENCODED.set(None)
    try:
        yield
    finally:
        _ENCODED.reset(token)


def whole_places(features: Sequence[Tensor]) -> list[Places]:
    """Those of images that keep all their tokens ``[N, D]``."""
    sizes = [len(image) for image in features]
    return [Places(torch.arange(size, device=features[0].device), size) for size in sizes]


def read_places(features: Sequence[Tensor]) -> list[Places]:
    """What `tell_places` noted on features.

    Raises:
        NotImplementedError: nothing was.
    """
    noted = [getattr(image, _PLACES, None) for image in features]
    places = [each for each in noted if each is not None]
    if len(places) < len(noted):
        raise NotImplementedError(
            "mm_encoder_outputs: expected features as get_image_features of the attached model "
            "returns them, got others, whose positions are not known; prefill_chunk_size makes "
            'such of them, and needs positions="consecutive"'
        )
    return places


def shift_positions(is_image: Tensor, places: Sequence[Places]) -> Shift:
    """The shift of a prompt's columns; without a wait for the device.

    Args:
        is_image: bool ``[B, L]``, the placeholders of all images, row by row.
        places: of each image.
    """
    before, last = [], []
    for each in places:
        kept = each.kept.to(is_image.device)
        ends = torch.cat([kept.new_full((1,), -1), kept, kept.new_full((1,), each.whole)])
        gaps = ends.diff() - 1
        before.append(gaps[:-1])
        # Behind the last placeholder alone.
        last.append(torch.cat([gaps.new_zeros(len(kept) - 1), gaps[-1:]]))
    zeros = torch.zeros(is_image.shape, dtype=torch.int64, device=is_image.device)
    at = zeros.masked_scatter(is_image, torch.cat(before)).cumsum(1)
    after = zeros.masked_scatter(is_image, torch.cat(last))
    following = after.cumsum(1)
    return Shift(at + following - after, at[:, -1] + following[:, -1])


def forward(original: Method, inner: Any, given: dict[str, Any]) -> Any:
    """What runs instead of the ``forward`` of a model whose language model is a rotary one.

    Later calls of a conversation find in its cache how many positions each row has left out.

    Raises:
        ValueError: the cache is of other rows, or was cropped into the prompt.
        NotImplementedError: see `read_places`.
    """
    tokens = given["inputs_embeds"] if given.get("input_ids") is None else given["input_ids"]
    dropped = _recall(read_cache(given), len(tokens))
    outputs = (given.get("mm_encoder_outputs") or {}).get("image")
    if outputs is None and given.get("pixel_values") is None:
        if dropped is not None:
            given = given | {"position_ids": _read_positions(given, tokens) + dropped[:, None]}
        # Nested in another call, as by a hook, this one is not to be shifted by it.
        with Intercepts().active():
            return original(**given)
    places = [] if outputs is None else read_places(outputs.pooler_output)
    shifts: list[Shift] = []

    def rotate(
        original: Method, states: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        # By now the images are encoded. Models of several kinds of layers rotate several times.
        if not shifts:
            shift = shift_positions(_find_images(inner, given, tokens), places)
            shifts.append(shift if dropped is None else shift.behind_dropped(dropped))
        return original(states, position_ids + shifts[0].columns, *args, **kwargs)

    intercepts = Intercepts()
    intercepts.replace(inner.language_model.rotary_emb, rotate)
    token = _ENCODED.set(places)
    try:
        with intercepts.active():
            output = original(**given)
    finally:
        _ENCODED.reset(token)
    cache = read_cache(output) if isinstance(output, dict) else read_cache(given)
    if cache is not None:
        setattr(cache, _DROPPED, Dropped(shifts[0].following, cached_length(cache)))
    return output


def keeps_positions(options: Options, inner: Any) -> bool:
    """Whether kept tokens stand at their original positions.

    By default where the language model of a model has rotary ones, which can be shifted.

    Raises:
        ValueError: original positions are asked of another one.
    """
    is_rotary = hasattr(inner.language_model, "rotary_emb")
    if options.positions == "original" and not is_rotary:
        raise ValueError(
            "positions: expected 'consecutive', as the language model, a "
            f"{type(inner.language_model).__name__}, has no rotary embedding; got 'original'"
        )
    return is_rotary if options.positions is None else options.positions == "original"


def _recall(cache: Any, rows: int) -> Tensor | None:
    """How many positions each row in a cache has left out: int64 ``[rows]``; None: no row any."""
    dropped: Dropped | None = getattr(cache, _DROPPED, None)
    length = cached_length(cache)
    # A static cache may have been reset.
    if dropped is None or length == 0:
        return None
    prompts = len(dropped.counts)
    if rows % prompts or length < dropped.length:
        raise ValueError(
            f"past_key_values: filled by a prompt of {prompts} rows and {dropped.length} columns, "
            f"got {rows} rows and {length} cached columns"
        )
    return dropped.counts.repeat_interleave(rows // prompts)


def _read_positions(given: dict[str, Any], tokens: Tensor) -> Tensor:
    """The positions of a call, or those that transformers takes without any: behind the cache."""
    positions: Tensor | None = given.get("position_ids")
    if positions is not None:
        return positions
    start = cached_length(read_cache(given))
    return torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]


def _find_images(inner: Any, given: dict[str, Any], tokens: Tensor) -> Tensor:
    """The placeholders of a call, found as the model finds them: bool ``[B, L]``."""
    token = inner.config.image_token_id
    if given.get("input_ids") is not None:
        return tokens == token
    embedding = inner.get_input_embeddings()(torch.tensor(token, device=tokens.device))
    return (tokens == embedding).all(-1)
