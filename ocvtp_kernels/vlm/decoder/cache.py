"""The columns of a pruned prompt, stored on its key-value cache, and tokens that follow it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ocvtp_kernels.vlm.decoder.masks import extend_mask
from ocvtp_kernels.vlm.layer_call import cached_length, read_cache

_PRUNED = "_ocvtp_pruned"

Layer = Callable[..., Tensor]  # a decoder layer's own forward


class Columns(NamedTuple):
    """The kept columns of a prompt, short rows padded on the left."""

    columns: Tensor  # int64 [B, W], index in the whole prompt
    valid: Tensor  # bool [B, W], False: padding
    padded: bool  # whether there is any padding
    prompt_length: int  # columns of the whole prompt
    layer: int  # the first layer that has only these

    def cut(self, tail: int) -> Columns:
        """Without the last ``tail`` columns, which are as in the whole prompt."""
        stop = self.valid.shape[1] - tail
        columns, valid = self.columns[:, :stop], self.valid[:, :stop]
        return self._replace(columns=columns, valid=valid, prompt_length=self.prompt_length - tail)


class Continuation:
    """Tokens behind a pruned prompt, layer by layer; as `Prefill`."""

    def __init__(self, kept: Columns, flash: bool) -> None:
        self._kept, self._flash = kept, flash
        self._mask: tuple[Tensor | None] | None = None

    def run(self, layer: Layer, index: int, hidden: Tensor, given: dict[str, Any]) -> Tensor:
        """The output of the layer ``index`` for ``hidden`` and its other arguments."""
        kept = self._kept
        if index < kept.layer:
            return layer(hidden, **given)
        if self._mask is None:
            length = read_cache(given).get_mask_sizes(hidden.shape[1], index)[0]
            mask = given.get("attention_mask")
            made = extend_mask(
                mask, kept.valid, kept.padded, kept.prompt_length, length, hidden, self._flash
            )
            self._mask = (made,)
        return layer(hidden, **given | {"attention_mask": self._mask[0]})


def remember(cache: Any, kept: Columns) -> None:
    """Stores on a cache the columns of its layers from ``kept.layer`` on, for deep copies too."""
    setattr(cache, _PRUNED, kept)


def resume(cache: Any, rows: int, added: int, flash: bool) -> Continuation | None:
    """How ``added`` tokens follow the columns of a cache; None if none were dropped from it.

    Raises:
        ValueError: the cache was cropped into the images, or has other rows.
    """
    kept: Columns | None = getattr(cache, _PRUNED, None)
    if kept is None:
        return None
    length = cache.get_seq_length()
    # A static cache's is on the device, and a decoding step must not wait for it.
    if isinstance(length, int) or added > 1:
        if int(length) == 0:
            delattr(cache, _PRUNED)
            return None
        if int(length) < kept.prompt_length:
            raise ValueError(
                f"past_key_values: expected the {kept.prompt_length} columns up to the last image "
                f"whose tokens were dropped, or more, got {int(length)}"
            )
    if rows % len(kept.valid):
        raise ValueError(
            f"past_key_values: filled by a prompt of {len(kept.valid)} rows, got {rows} rows"
        )
    return Continuation(kept, flash)


def require_new(cache: Any) -> None:
    """Raises NotImplementedError if a cache holds a conversation already."""
    if cached_length(cache):
        raise NotImplementedError(
            "past_key_values: images are pruned in the decoder in a new prompt only; start the "
            "conversation anew, without a cache, to add an image to it"
        )
