"""VisionZip: the tokens of most CLS attention, and a few that the rest is merged into."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.checks import require_at_least, require_bool
from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.ops.ordering import nan_last
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, required, without_autocast
from ocvtp_kernels.selectors.ranking import cosine_with, group_means, others, top
from ocvtp_kernels.selectors.similarity import mean_over_heads


class VisionZip:
    """Dominant and contextual tokens, CVPR 2025, arXiv 2412.04467.

    1. Dominant: the tokens of most CLS attention, all but ``contextual`` of the budget.
    2. Targets: of the R tokens left, in positional order, those at 0, step, 2 step ..., with
       ``step = R // contextual``.
    3. Every other token left goes to the target whose key has the largest cosine with its own, the
       first of equals; a target becomes the mean of itself and its members.

    Args:
        contextual: contextual tokens, 0 to the budget; None takes 10 of 64, as published.
        heads: heads side by side in the keys, over which they are averaged; the inputs'
            ``num_heads`` if None, and without one the keys count as averaged already.
        as_published: the CLS token is one of the budget (``extra``; ids and tokens are then one
            less, and as many fewer dominant ones), and a target becomes the sum of itself and the
            mean of its members, about twice as long. Needs ``cls_token``.

    Raises:
        ValueError: an argument is out of range.
    """

    place = "encoder"
    wants = frozenset({"num_heads"})

    def __init__(
        self,
        contextual: int | None = None,
        heads: int | None = None,
        as_published: bool = False,
    ) -> None:
        for name, value, minimum in (("contextual", contextual, 0), ("heads", heads, 1)):
            if value is not None:
                require_at_least(name, value, minimum)
        require_bool("as_published", as_published)
        self.contextual, self.heads, self.as_published = contextual, heads, as_published
        needs = {"cls_attention", "keys", "final_tokens"}
        self.needs = frozenset(needs | {"cls_token"} if as_published else needs)
        self.exact = not as_published

    @without_autocast
    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """Ids ascending, of dominant tokens and targets, and the tokens.

        Raises:
            ValueError: more contextual tokens than the budget, or the keys are no such heads.
        """
        attention, tokens = required(inputs.cls_attention), inputs.final_tokens
        patches = budget - 1 if self.as_published else budget
        contextual = min(budget * 10 // 64, patches) if self.contextual is None else self.contextual
        if contextual > patches:
            raise ValueError(f"contextual: expected at most {patches}, got {contextual}")
        dominant = top(attention, patches - contextual)
        targets = _targets(dominant, contextual, tokens.shape[1])
        keys = mean_over_heads(required(inputs.keys), self.heads or inputs.num_heads)
        merged = self._merge(tokens, dominant, targets, keys)
        ids, by_id = torch.cat([dominant, targets], dim=1).sort(dim=1)
        kept = torch.cat([gather_tokens(tokens, dominant), merged], dim=1)
        kept = gather_tokens(kept, by_id)
        if not self.as_published:
            return Selected(ids, kept)
        cls_token = required(inputs.cls_token)
        return Selected(ids, kept, extra=cls_token[:, None], extra_counted=1)

    def _merge(self, tokens: Tensor, dominant: Tensor, targets: Tensor, metric: Tensor) -> Tensor:
        """The targets with their members merged in: ``[B, contextual, C]``."""
        contextual = targets.shape[1]
        if contextual == 0:
            return tokens[:, :0]
        assignment = nan_last(cosine_with(targets, metric)).argmax(dim=1)
        assignment = assignment.scatter(1, dominant, -1)
        own = torch.arange(contextual, device=assignment.device).expand_as(targets)
        own = torch.full_like(own, -1) if self.as_published else own
        assignment = assignment.scatter(1, targets, own)
        merged = group_means(tokens, assignment, contextual)
        if self.as_published:
            merged = gather_tokens(tokens, targets) + merged
        return merged.to(tokens.dtype)


def _targets(dominant: Tensor, count: int, num_tokens: int) -> Tensor:
    """Targets at even steps among the tokens that are not dominant: ``[B, count]``."""
    if count == 0:
        return dominant[:, :0]
    rest = others(dominant, num_tokens)
    return rest[:, :: max(1, rest.shape[1] // count)][:, :count]
