"""What LLaVA-1.5 and LLaVA-NeXT share: a photo's tokens stand where they do in the whole prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.vlm.families import Line, words
from tests.vlm.models import IMAGE_ID, make_tokenizer

TOKENIZER = make_tokenizer()
BANNED = (TOKENIZER.eos_token_id, IMAGE_ID)
FIELDS = frozenset(
    {
        *("reference_tokens", "final_tokens", "importance", "shallow_importance"),
        *("cls_attention", "keys"),
    }
)


class Photo(NamedTuple):
    """What is kept of a photo."""

    features: Tensor  # [T, D]
    places: list[int]  # of these, among all that the model has of the photo
    whole: int  # how many those are


def lay(model: Any, text: str, photos: Sequence[Photo], start: int) -> Line:
    """A text whose placeholders are photos."""
    remaining = iter(photos)
    embeddings, tokens, positions = [], [], []
    for token in TOKENIZER(text)["input_ids"]:
        if token == IMAGE_ID:
            part, places, count = next(remaining)
        else:
            part, places, count = words(model, [token], 0).embeddings, [0], 1
        embeddings.append(part)
        tokens += [token] * len(part)
        positions += [start + place for place in places]
        start += count
    assert next(remaining, None) is None
    return Line(torch.cat(embeddings), torch.tensor(positions).expand(3, -1), tokens, [], start)


def logits_of(model: Any, line: Line, text: str = "language_model") -> Tensor:
    """``[L, vocabulary]``, without a cache; ``text`` is where the language model is."""
    hidden = getattr(model.model, text)(
        inputs_embeds=line.embeddings[None],
        # Without a mask gaps in the positions would be taken for other samples.
        attention_mask=torch.ones(1, len(line.tokens), dtype=torch.int64),
        position_ids=line.positions[:1],
        use_cache=False,
    ).last_hidden_state
    logits: Tensor = model.lm_head(hidden[0])
    return logits


def states_of(model: Any, pixels: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """Reference tokens and final tokens ``[crops, N, C]``."""
    tower = model.model.vision_tower
    states = tower(pixels.to(model.dtype), output_hidden_states=True).hidden_states
    return states[layer + 1][:, 1:], states[-2][:, 1:]
