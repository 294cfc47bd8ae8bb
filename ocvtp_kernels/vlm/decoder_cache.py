"""What a key-value cache knows of a prompt that lost image tokens, and how tokens follow it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ocvtp_kernels.vlm.decoder_masks import extend_mask
from ocvtp_kernels.vlm.layer_call import read_cache
from ocvtp_kernels.vlm.qwen_positions import cached_length

_PRUNED = "_ocvtp_pruned"

Layer = Callable[..., Tensor]  # a decoder layer's own forward


class Columns(NamedTuple):
    """The columns of a prompt that are left, short rows padded on the left."""

    columns: Tensor  # int64 [B, W], where they stood in the whole prompt
    valid: Tensor  # bool [B, W], False: padding
    padded: bool  # whether there is any padding
    whole: int  # columns of the whole prompt
    layer: int  # the first layer that has only these

    def cut(self, tail: int) -> Columns:
        """Without the last ``tail`` columns, which are as in the whole prompt."""
        stop = self.valid.shape[1] - tail
        columns, valid = self.columns[:, :stop], self.valid[:, :stop]
        return self._replace(columns=columns, valid=valid, whole=self.whole - tail)


class Later:
    """The way of tokens behind a prompt that was pruned; as `Prefill`."""

    def __init__(self, left: Columns, flash: bool) -> None:
        self._left, self._flash = left, flash
        self._mask: tuple[Tensor | None] | None = None

    def run(self, layer: Layer, index: int, hidden: Tensor, given: dict[str, Any]) -> Tensor:
        """The output of the layer ``index`` for ``hidden`` and its other arguments."""
        left = self._left
        if index < left.layer:
            return layer(hidden, **given)
        if self._mask is None:
            length = read_cache(given).get_mask_sizes(hidden.shape[1], index)[0]
            mask = given.get("attention_mask")
            made = extend_mask(
                mask, left.valid, left.padded, left.whole, length, hidden, self._flash
            )
            self._mask = (made,)
        return layer(hidden, **given | {"attention_mask": self._mask[0]})


def remember(cache: Any, left: Columns) -> None:
    """Writes onto a cache what its layers from ``left.layer`` on hold; a deep copy knows it too."""
    setattr(cache, _PRUNED, left)


def resume(cache: Any, rows: int, added: int, flash: bool) -> Later | None:
    """How ``added`` tokens go on behind what a cache holds; None if nothing was dropped from it.

    Raises:
        ValueError: the cache was cropped into the images, or has other rows.
    """
    left: Columns | None = getattr(cache, _PRUNED, None)
    if left is None:
        return None
    length = cache.get_seq_length()
    # Of a static cache it is on the device, and a step of decoding must not wait for that.
    if isinstance(length, int) or added > 1:
        if int(length) == 0:
            delattr(cache, _PRUNED)
            return None
        if int(length) < left.whole:
            raise ValueError(
                f"past_key_values: expected the {left.whole} columns up to the last image whose "
                f"tokens were dropped, or more, got {int(length)}"
            )
    if rows % len(left.valid):
        raise ValueError(
            f"past_key_values: filled by a prompt of {len(left.valid)} rows, got {rows} rows"
        )
    return Later(left, flash)


def require_new(cache: Any) -> None:
    """Raises NotImplementedError if a cache holds a conversation already."""
    if cached_length(cache):
        raise NotImplementedError(
            "past_key_values: images are pruned in the decoder in a new prompt only; start the "
            "conversation anew, without a cache, to add an image to it"
        )
