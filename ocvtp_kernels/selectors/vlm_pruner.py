"""VLM-Pruner: from a few pivots outwards over the grid, then the rest merged into the kept."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ocvtp_kernels.checks import (
    require_at_least,
    require_between,
    require_bool,
    require_number,
)
from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.selectors.interface import (
    Selected,
    SelectorInputs,
    place_of,
    required,
    without_autocast,
)
from ocvtp_kernels.selectors.similarity import cosine

EPS = 1e-8  # smallest norm of a cosine and sum of weights, of the published code


class VLMPruner:
    """VLM-Pruner, CVPR 2026, arXiv 2512.02700: pivots, centrifugal expansion, recovery.

    1. Pivots, in key space: the token of largest L1 norm, then farthest-point greedy.
    2. Expansion (`ocvtp_kernels.ops.centrifugal_select.reference`) on the cosine of the
       ``channels`` channels of largest variance.
    3. Recovery: each token left over goes to the kept token most similar to it, by its similarity
       as weight: ``kept <- own_share * kept + (1 - own_share) * mean``.

    Published before the third decoder layer, on the second layer's hidden states and keys.

    Args:
        pivots: tokens the expansion starts from.
        channels: channels of the final tokens that similarity is taken on.
        spread: weight of the distance on the grid.
        threshold, step: redundancy that the first pass allows, and by how much each next raises it.
        chunk: tokens compared at once.
        own_share: what a kept token keeps of itself in the recovery.
        place: "decoder" as published, or "encoder" or "projector", on whose output it then works.
        layer: decoder layer before which tokens are dropped, from 1; unused at another place.
        as_published: keeps fewer tokens than the budget where a pass finds none; ids end in -1
            there, and these rows of tokens are 0.

    Raises:
        ValueError: an argument is out of range.
    """

    needs = frozenset({"final_tokens", "keys", "grid"})

    def __init__(
        self,
        pivots: int = 4,
        channels: int = 256,
        spread: float = 0.5,
        threshold: float = 0.8,
        step: float = 0.1,
        chunk: int = 16,
        own_share: float = 0.3,
        place: str = "decoder",
        as_published: bool = False,
        layer: int = 2,
    ) -> None:
        require_at_least("pivots", pivots, 1)
        require_at_least("channels", channels, 1)
        require_at_least("chunk", chunk, 1)
        require_at_least("layer", layer, 1)
        require_between("spread", spread, 0, math.inf)
        require_between("step", step, 0, math.inf)
        require_number("threshold", threshold)
        require_between("own_share", own_share, 0, 1)
        require_bool("as_published", as_published)
        self.pivots, self.channels, self.own_share = pivots, channels, own_share
        self.spread, self.threshold, self.step, self.chunk = spread, threshold, step, chunk
        self.place, self.layer, self.exact = place, layer, not as_published
        place_of(self)

    @without_autocast
    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """Ids ascending, merged tokens, the order picked and the count before padding."""
        tokens, ops = inputs.final_tokens, torch.ops.ocvtp
        pivots = ops.pivot_select(required(inputs.keys), min(self.pivots, budget))
        similarity = cosine(screen_channels(tokens, self.channels), EPS)
        order, count, assignment, weight = ops.centrifugal_select(
            similarity,
            pivots,
            *required(inputs.grid),
            budget,
            self.spread,
            self.threshold,
            self.step,
            self.chunk,
            self.exact,
        )
        # Past the count there is no id: these come last.
        by_id = order.masked_fill(order < 0, tokens.shape[1]).argsort(dim=1)
        ids = order.gather(1, by_id)
        # The assignment counts in the order picked; rows are merged in the order of ids.
        rank = by_id.argsort(dim=1).gather(1, assignment.clamp_min(0))
        merged = self._recover(tokens, ids, rank.masked_fill(assignment < 0, -1), weight)
        if not self.exact:
            merged = merged.masked_fill(ids[..., None] < 0, 0)
        return Selected(ids, merged, order, count)

    def _recover(self, tokens: Tensor, ids: Tensor, assignment: Tensor, weight: Tensor) -> Tensor:
        """The kept tokens ``[B, T, C]``, with the rest merged into them."""
        sums, mass = torch.ops.ocvtp.scatter_merge(tokens, assignment, weight, ids.shape[1])
        kept = gather_tokens(tokens, ids.clamp_min(0)).to(sums.dtype)
        mass = mass[..., None]
        mixed = sums.mul_((1 - self.own_share) / mass.clamp_min(EPS)).add_(
            kept, alpha=self.own_share
        )
        return torch.where(mass > 0, mixed, kept).to(tokens.dtype)


def screen_channels(tokens: Tensor, count: int) -> Tensor:
    """The ``count`` channels of largest variance over an image's tokens, or all there are.

    Args:
        tokens: ``[B, N, C]``.

    Returns:
        ``[B, N, count]`` in the dtype of ``tokens``, largest variance first, ties to the lowest.
    """
    if count >= tokens.shape[2]:
        return tokens
    variance = torch.ops.ocvtp.channel_variance(tokens)
    channels = variance.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return tokens.gather(2, channels[:, None].expand(-1, tokens.shape[1], -1))
