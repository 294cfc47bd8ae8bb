"""SCOPE: tokens that cover all others, weighted by CLS attention."""

from __future__ import annotations

import math

import torch

from ocvtp_kernels.checks import require_between
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, required, without_autocast
from ocvtp_kernels.selectors.ranking import EPS, widen
from ocvtp_kernels.selectors.similarity import cosine


class SCOPE:
    """Saliency and coverage by greedy facility location, NeurIPS 2025, arXiv 2510.24214.

    Picks the largest ``attention_j ** alpha * sum_i max(0, cos_ij - covered_i)``, where
    ``covered_i`` is the largest cosine of token i with a pick, at least 0.

    Args:
        alpha: at least 0; 0 leaves coverage alone.

    Raises:
        ValueError: an argument is out of range.
    """

    place = "encoder"
    needs = frozenset({"final_tokens", "cls_attention"})

    def __init__(self, alpha: float = 1.0) -> None:
        require_between("alpha", alpha, 0, math.inf)
        self.alpha = float(alpha)

    @without_autocast
    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """Ids ascending, and the order picked."""
        saliency = widen(required(inputs.cls_attention)) ** self.alpha
        # A NaN token counts as similar to none; otherwise every sum over tokens would be NaN.
        similarity = cosine(inputs.final_tokens, EPS).nan_to_num_(nan=0.0)
        order = torch.ops.ocvtp.facility_select(similarity, saliency, budget)
        return Selected(order.sort(dim=1).values, order=order)
