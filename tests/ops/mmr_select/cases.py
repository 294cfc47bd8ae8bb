"""Numbers that are not finite, and weights at and next to the ends of their range."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The second is 0 in float32.
TRADE_OFFS = [0.0, 1e-50, 1e-5, 0.5, 1.0]
ODD = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 3e38, -3e38])


def spoilt(batch: int, num_tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """Relevance and similarity, of which a share is odd, from none to most."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        share = float(torch.rand((), generator=generator)) ** 3
        values = torch.randn(shape, generator=generator)
        odd = ODD[torch.randint(0, len(ODD), shape, generator=generator)]
        return torch.where(torch.rand(shape, generator=generator) < share, odd, values)

    return drawn(batch, num_tokens), drawn(batch, num_tokens, num_tokens)
