"""VisPruner and FasterVLM: what the CLS token attends to."""

from __future__ import annotations

import torch

from ocvtp_kernels.checks import require_at_least, require_between
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, required, without_autocast
from ocvtp_kernels.selectors.ranking import EPS, ranking, top
from ocvtp_kernels.selectors.similarity import cosine


class FasterVLM:
    """The tokens of most CLS attention, arXiv 2412.01818."""

    place = "encoder"
    needs = frozenset({"cls_attention"})

    @without_autocast
    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """Ids ascending."""
        return Selected(top(required(inputs.cls_attention), budget))


class VisPruner:
    """Important tokens by CLS attention, then diverse ones, ICCV 2025.

    1. ``int(budget * important_share)`` tokens of most attention.
    2. The rest, in attention order, goes through rounds of bipartite matching that each drop up to
       ``drop`` tokens most like another (`ocvtp_kernels.ops.match_select`), until as
       many are left as the budget still needs.

    The published code needs an even number of tokens in step 2; here it may be odd.

    Args:
        important_share: 0 to 1.
        drop: at least 1.

    Raises:
        ValueError: an argument is out of range.
    """

    place = "encoder"
    needs = frozenset({"cls_attention", "final_tokens"})

    def __init__(self, important_share: float = 0.5, drop: int = 8) -> None:
        require_between("important_share", important_share, 0, 1)
        require_at_least("drop", drop, 1)
        self.important_share, self.drop = important_share, drop

    @without_autocast
    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """Ids ascending; in the order, the important ones come first."""
        by_attention = ranking(required(inputs.cls_attention))
        important = int(budget * self.important_share)
        order, rest = by_attention[:, :important], by_attention[:, important:]
        if important < budget:
            similarity = cosine(inputs.final_tokens, EPS)
            diverse = torch.ops.ocvtp.match_select(similarity, rest, budget - important, self.drop)
            order = torch.cat([order, diverse], dim=1)
        return Selected(order.sort(dim=1).values, order=order)
