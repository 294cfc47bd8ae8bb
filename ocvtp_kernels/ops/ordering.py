"""How scores are ordered: a NaN never beats a number, ties go to the lowest id."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def nan_last(scores: Tensor) -> Tensor:
    """The scores with NaN as -inf."""
    return scores.masked_fill(scores.isnan(), -math.inf)


def first_of_highest(scores: Tensor, taken: Tensor) -> Tensor:
    """The lowest id of the highest score, ``[B]``, among tokens not taken yet, ``[B, N]``."""
    # Argmax may name any of the highest: the first comes from a comparison. Taken tokens stand
    # behind those whose score is -inf.
    scores = nan_last(scores)
    best = scores.masked_fill(taken, -math.inf).amax(dim=1, keepdim=True)
    return ((scores == best) & ~taken).to(torch.uint8).argmax(dim=1)
