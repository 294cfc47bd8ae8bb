"""What LLaVA-1.5 and LLaVA-NeXT share: a photo's tokens are placed as text is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def lay(model: Any, text: str, features: Sequence[Tensor], start: int) -> Line:
    """A text whose placeholders are photos' features ``[T_i, D]``."""
    remaining = iter(features)
    embeddings, tokens = [], []
    for token in TOKENIZER(text)["input_ids"]:
        part = next(remaining) if token == IMAGE_ID else words(model, [token], 0).embeddings
        embeddings.append(part)
        tokens += [token] * len(part)
    assert next(remaining, None) is None
    positions = start + torch.arange(len(tokens)).expand(3, -1)
    return Line(torch.cat(embeddings), positions, tokens, [], start + len(tokens))


def logits_of(model: Any, line: Line) -> Tensor:
    """``[L, vocabulary]``, without a cache."""
    hidden = model.model.language_model(
        inputs_embeds=line.embeddings[None], position_ids=line.positions[:1], use_cache=False
    ).last_hidden_state
    logits: Tensor = model.lm_head(hidden[0])
    return logits


def states_of(model: Any, pixels: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """Reference tokens and final tokens ``[crops, N, C]``."""
    tower = model.model.vision_tower
    states = tower(pixels.to(model.dtype), output_hidden_states=True).hidden_states
    return states[layer + 1][:, 1:], states[-2][:, 1:]
