"""Where the tokens of a pruned prompt stand in a model of M-RoPE positions.

Text stands where it would without pruning, and a kept token where it stands in its image. vLLM asks
for positions before the tokens are chosen, so a kept token carries its place in its image along, in
channels behind its own. Positions of LLaVA are those of images that are one token wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Row and column in two digits each, so that half precision holds them.
NUM_DIGITS = 4
_BASE = 256  # bfloat16 holds integers up to here


class Span(NamedTuple):
    """The placeholders of an image or a video in a prompt."""

    offset: int  # index of the first
    length: int  # how many there are
    whole: int  # how many there were without pruning


class WholePrompt(NamedTuple):
    """A prompt as it would be without pruning."""

    tokens: list[int]
    offsets: list[int]  # of its spans
    columns: (
        Tensor  # int64, ascending: where the tokens of the pruned prompt are, see `expand_prompt`
    )


def longest_prompt(model_config: Any) -> int:
    """Tokens of the longest prompt that is taken, the dropped ones among them.

    Args:
        model_config: vLLM's, of a model of one position a token.
    """
    trained = getattr(model_config.hf_text_config, "max_position_embeddings", 0)
    return max(int(trained), int(model_config.max_model_len))


def expand_prompt(tokens: Sequence[int], spans: Sequence[Span]) -> WholePrompt:
    """The whole prompt of a pruned one.

    Placeholders of a pruned image are put at its last ones, until it is known which are kept: so
    nothing stands behind the text that follows, or before the text in front.

    Args:
        tokens: of the pruned prompt.
        spans: in order.
    """
    whole: list[int] = []
    offsets: list[int] = []
    columns: list[int] = []
    done = 0
    for span in spans:
        end = span.offset + span.length
        columns += range(len(whole), len(whole) + span.offset - done)
        whole += tokens[done : span.offset]
        offsets.append(len(whole))
        dropped = span.whole - span.length
        whole += [*tokens[span.offset : end], *([tokens[span.offset]] * dropped)]
        columns += range(len(whole) - span.length, len(whole))
        done = end
    columns += range(len(whole), len(whole) + len(tokens) - done)
    whole += tokens[done:]
    return WholePrompt(whole, offsets, torch.tensor(columns, dtype=torch.int64))


def narrow_positions(length: int, images: Sequence[tuple[int, int]]) -> Tensor:
    """Positions of a whole prompt whose images are one token wide, int64 ``[3, length]``.

    Rows count the tokens of the prompt one by one; time and columns stand still in an image.

    Args:
        length: of the prompt, L.
        images: the offset and the number of placeholders of each.
    """
    positions = torch.arange(length).repeat(3, 1)
    for offset, count in images:
        positions[0::2, offset : offset + count] = offset
    return positions


def append_places(features: Tensor, ids: Tensor, columns: int) -> Tensor:
    """Features ``[T, D]`` with the places of the tokens behind them, ``[T, D + NUM_DIGITS]``.

    Args:
        features: of the kept tokens.
        ids: int64 ``[T]``, of these tokens in the image, row by row.
        columns: of the image.
    """
    places = torch.stack((ids // columns, ids % columns), dim=1)
    digits = torch.stack((places // _BASE, places % _BASE), dim=2).flatten(1)
    return torch.cat((features, digits.to(features)), dim=1)


def place_tokens(positions: Tensor, columns: Tensor, digits: Tensor) -> None:
    """Writes the positions of an image's kept tokens.

    Args:
        positions: int64 ``[3, L]`` of time, row and column. All tokens of an image have the time at
            which it begins.
        columns: int64 ``[T]``, of the tokens among the L.
        digits: ``[T, NUM_DIGITS]``, see `append_places`.
    """
    high, low = digits.to(positions).unflatten(1, (2, 2)).unbind(2)
    positions[1:, columns] = positions[0, columns] + (high * _BASE + low).T
