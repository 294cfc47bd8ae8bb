"""DivPrune: the tokens that differ most from one another."""

from __future__ import annotations

import torch

from ocvtp_kernels.checks import require_bool
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, without_autocast
from ocvtp_kernels.selectors.similarity import cosine


class DivPrune:
    """Max-min diversity by farthest-point greedy on cosine distance, CVPR 2025, arXiv 2503.02175.

    Begins with the token whose nearest other token is farthest, then always takes the token
    farthest from its nearest pick. Published between projector and language model.

    Args:
        as_published: picks a token twice where duplicates have distance 0, as the published code.
    """

    place = "projector"
    needs = frozenset({"final_tokens"})

    def __init__(self, as_published: bool = False) -> None:
        require_bool("as_published", as_published)
        self.as_published = as_published

    @without_autocast
    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """Ids ascending, and the order picked."""
        distances = 1 - cosine(inputs.final_tokens)
        order = torch.ops.ocvtp.farthest_select(distances, None, budget, not self.as_published)
        return Selected(order.sort(dim=1).values, order=order)
