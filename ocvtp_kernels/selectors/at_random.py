"""Tokens at random: the baseline that every selector must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import Evidence, Selected


class RandomSelector:
    """Keeps tokens at random.

    The choice depends on the seed and the number of tokens alone, so an image keeps the same
    tokens on every call, alone or in a batch.

    Args:
        seed: of the ranks drawn.
    """

    place = "encoder"
    needs = frozenset({"reference_tokens"})

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._scores: dict[tuple[int, torch.device], Tensor] = {}

    def __call__(self, evidence: Evidence, budget: int) -> Selected:
        """Ids int64 ``[B, budget]``; each image must have that many valid tokens."""
        batch, num_tokens, _ = evidence.reference_tokens.shape
        scores = self._draw(num_tokens, evidence.reference_tokens.device).expand(batch, -1)
        if evidence.valid is not None:
            scores = scores.masked_fill(~evidence.valid, -1.0)
        return Selected(scores.topk(budget, dim=1).indices.sort(dim=1).values)

    def _draw(self, num_tokens: int, device: torch.device) -> Tensor:
        key = (num_tokens, device)
        if key not in self._scores:
            rank = draw_rank
            if torch.compiler.is_compiling():
                # Imported while it traces: the decorator there would bring the compiler along.
                from ocvtp_kernels.selectors.constant_rank import constant_rank as rank
            self._scores[key] = rank(self.seed, num_tokens).to(device)
        return self._scores[key]


def draw_rank(seed: int, num_tokens: int) -> Tensor:
    """A rank for each token, float32 ``[N]``, without ties."""
    # Drawn on the CPU, so that every device keeps the same tokens.
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(num_tokens, generator=generator).to(torch.float32)
