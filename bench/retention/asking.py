"""All questions of a scene in one sequence: each sees the image and itself, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.retention.model import END, VOCABULARY
from bench.retention.scenes import QUESTIONS, Scene

LENGTH = 10  # words of a question, its answer and the end, at most


class Asked(NamedTuple):
    """The questions of scenes as ids."""

    ids: Tensor  # int64 [B, QUESTIONS, LENGTH]: a question, its answer, the end
    last: Tensor  # int64 [B, QUESTIONS]: where a question ends, which is where it is answered

    @property
    def answers(self) -> Tensor:
        """Ids of the right answers, ``[B, QUESTIONS]``."""
        return self.ids.gather(2, self.last[..., None] + 1)[..., 0]

    def take(self, index: Tensor) -> Asked:
        """Those of some scenes."""
        return Asked(self.ids[index], self.last[index])


def encode_questions(scenes: Sequence[Scene]) -> Asked:
    """The ids of all questions."""
    ids = torch.zeros(len(scenes), QUESTIONS, LENGTH, dtype=torch.int64)
    last = torch.zeros(len(scenes), QUESTIONS, dtype=torch.int64)
    for i, scene in enumerate(scenes):
        for j, question in enumerate(scene.questions):
            words = [VOCABULARY[word] for word in (*question.text.split(), question.answer)]
            ids[i, j, : len(words) + 1] = torch.tensor([*words, END])
            last[i, j] = len(words) - 2
    return Asked(ids, last)


def ask(model: Any, features: Tensor, asked: Asked, positions: Tensor, start: int) -> Tensor:
    """Logits of the first two words behind every question.

    Args:
        model: a LLaVA.
        features: projected image tokens, ``[B, T, D]``.
        asked: of the same images.
        positions: int64 ``[B, T]`` of the tokens.
        start: position of every question's first word.

    Returns:
        ``[B, QUESTIONS, 2, words]``.
    """
    batch, num_tokens, _ = features.shape
    words = model.get_input_embeddings()(asked.ids.flatten(1))
    behind = (start + torch.arange(LENGTH)).repeat(QUESTIONS).expand(batch, -1)
    hidden = model.model.language_model(
        inputs_embeds=torch.cat([features, words], 1),
        attention_mask=_mask(num_tokens).expand(batch, 1, -1, -1),
        position_ids=torch.cat([positions, behind], 1),
        use_cache=False,
    ).last_hidden_state[:, num_tokens:]
    offset = LENGTH * torch.arange(QUESTIONS)[:, None] + torch.arange(2)
    index = (asked.last[..., None] + offset).flatten(1)[..., None].expand(-1, -1, hidden.shape[-1])
    return model.lm_head(hidden.gather(1, index)).unflatten(1, (QUESTIONS, 2))


def _mask(num_tokens: int) -> Tensor:
    """What is added to the attention logits: 0 where one may look, else very negative."""
    whose = torch.arange(QUESTIONS).repeat_interleave(LENGTH)
    whose = torch.cat([torch.full((num_tokens,), -1), whose])
    seen = (whose == -1) | (whose == whose[:, None])
    seen &= torch.ones(len(whose), len(whose), dtype=torch.bool).tril()
    return torch.zeros(seen.shape).masked_fill(~seen, -1e9)
