"""IDPruner: important tokens that differ from one another."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ocvtp_kernels.checks import require_between
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, without_autocast
from ocvtp_kernels.selectors.ranking import EPS
from ocvtp_kernels.selectors.scores import needs_of_score, read_score
from ocvtp_kernels.selectors.similarity import cosine

MIN_RANGE = 1e-6  # added to the range of an image's scores


class IDPruner:
    """Importance and diversity by maximal marginal relevance, arXiv 2602.13315.

    1. Importance: ``r = (s - min) / (max - min + 1e-6)`` of a score over the image's tokens.
    2. The first pick is the most important token; each next one has the largest ``trade_off * r_j -
       (1 - trade_off) * max over picks i of cos(tokens_i, tokens_j)``
       (`ocvtp_kernels.ops.mmr_select`).

    The published score is that of a trained network, which is none of this method: the score is
    given. Published between projector and language model.

    Args:
        trade_off: the weight of importance, 0 to 1.
        score: the field of `SelectorInputs` that is the score: "relevance" (the caller's own),
            "importance" or "cls_attention".

    Raises:
        ValueError: an argument is out of range.
    """

    place = "projector"

    def __init__(self, trade_off: float = 0.5, score: str = "importance") -> None:
        require_between("trade_off", trade_off, 0, 1)
        self.needs = needs_of_score(score)
        self.trade_off, self.score = float(trade_off), score

    @without_autocast
    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """Ids ascending, and the order picked."""
        importance = normalise(read_score(inputs, self.score))
        return select_by_mmr(importance, cosine(inputs.final_tokens, EPS), budget, self.trade_off)


def normalise(scores: Tensor) -> Tensor:
    """An image's scores from 0 to 1, but for those that are not finite: ``[B, N]``."""
    is_number = scores.isfinite()
    low = scores.masked_fill(~is_number, math.inf).amin(dim=1, keepdim=True)
    high = scores.masked_fill(~is_number, -math.inf).amax(dim=1, keepdim=True)
    return torch.where(is_number, (scores - low) / (high - low + MIN_RANGE), scores)


def select_by_mmr(relevance: Tensor, similarity: Tensor, budget: int, trade_off: float) -> Selected:
    """Tokens by `ocvtp_kernels.ops.mmr_select`; one that is not finite comes last.

    Args:
        relevance: ``[B, N]``.
        similarity: ``[B, N, N]``, cosines.
    """
    # Picked first, it would be as unlike all others as no number is.
    relevance = relevance.masked_fill(similarity.diagonal(dim1=1, dim2=2).isnan(), math.nan)
    order = torch.ops.ocvtp.mmr_select(relevance, similarity, budget, trade_off)
    return Selected(order.sort(dim=1).values, order=order)
