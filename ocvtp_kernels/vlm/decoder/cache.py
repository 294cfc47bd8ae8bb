"""The columns of a pruned prompt, stored on its key-value cache, and tokens that follow it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ocvtp_kernels.vlm.decoder.masks import extend_mask
from ocvtp_kernels.vlm.layer_call import cached_length, read_cache

_PRUNED = "_ocvtp_pruned"

Layer = Callable[..., Tensor]  # a decoder layer's own forward
Rotary = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # of hidden states and positions


class Columns(NamedTuple):
    """The kept columns of a prompt from a layer on, short rows padded on the left."""

    columns: Tensor  # int64 [B, W], index in the whole prompt
    valid: Tensor  # bool [B, W], False: padding
    padded: bool  # whether there is any padding
    prompt_length: int  # columns of the whole prompt
    layer: int  # the first layer that has only these
    dropped: Tensor | None  # int64 [B], by how much later positions fall; None: they stay

    def cut(self, tail: int) -> Columns:
        """Without the last ``tail`` columns, which are as in the whole prompt."""
        stop = self.valid.shape[1] - tail
        columns, valid = self.columns[:, :stop], self.valid[:, :stop]
        return self._replace(columns=columns, valid=valid, prompt_length=self.prompt_length - tail)


class Continuation:
    """Tokens behind a pruned prompt, layer by layer; as `Prefill`.

    Args:
        stages: the prompt's columns, by rising layers.
        rotary: of the language model.
        flash: see `cut_mask`.
    """

    def __init__(self, stages: Sequence[Columns], rotary: Rotary, flash: bool) -> None:
        self._stages, self._rotary, self._flash = stages, rotary, flash
        self._replaced: dict[int, dict[str, Any]] = {}

    def run(
        self, layer: Layer, _module: Any, index: int, hidden: Tensor, given: dict[str, Any]
    ) -> Tensor:
        """The output of the layer ``index`` for ``hidden`` and its other arguments."""
        stage = sum(kept.layer <= index for kept in self._stages)
        if stage == 0:
            return layer(hidden, **given)
        if stage not in self._replaced:
            self._replaced[stage] = self._replace(self._stages[stage - 1], index, hidden, given)
        return layer(hidden, **given | self._replaced[stage])

    def _replace(
        self, kept: Columns, index: int, hidden: Tensor, given: dict[str, Any]
    ) -> dict[str, Any]:
        """The arguments that layers of fewer columns have of their own."""
        length = read_cache(given).get_mask_sizes(hidden.shape[1], index)[0]
        mask = given.get("attention_mask")
        made: dict[str, Any] = {
            "attention_mask": extend_mask(
                mask, kept.valid, kept.padded, kept.prompt_length, length, hidden, self._flash
            )
        }
        if kept.dropped is not None:
            dropped = kept.dropped.repeat_interleave(len(hidden) // len(kept.valid))
            positions = given["position_ids"] - dropped[:, None]
            made["position_embeddings"] = self._rotary(hidden, positions)
        return made


def remember(cache: Any, stages: Sequence[Columns]) -> None:
    """Stores on a cache the columns of its layers, for deep copies too."""
    setattr(cache, _PRUNED, tuple(stages))


def resume(cache: Any, rows: int, added: int, rotary: Rotary, flash: bool) -> Continuation | None:
    """How ``added`` tokens follow the columns of a cache; None if none were dropped from it.

    Raises:
        ValueError: the cache was cropped into the images, or has other rows.
    """
    stages: tuple[Columns, ...] = getattr(cache, _PRUNED, ())
    if not stages:
        return None
    kept, length = stages[0], cache.get_seq_length()
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
    return Continuation(stages, rotary, flash)


def require_new(cache: Any) -> None:
    """Raises NotImplementedError if a cache holds a conversation already."""
    if cached_length(cache):
        raise NotImplementedError(
            "past_key_values: images are pruned in the decoder in a new prompt only; start the "
            "conversation anew, without a cache, to add an image to it"
        )
