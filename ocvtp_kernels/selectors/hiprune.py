"""HiPrune: anchors of a shallow layer with their neighbours, then what a deep layer attends to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ocvtp_kernels.checks import require_between, require_bool
from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, required, without_autocast
from ocvtp_kernels.selectors.ranking import membership, ranking, top, widen

CROSS = 5  # an anchor and its four neighbours


class HiPrune:
    """Anchor, buffer and register tokens by attention received, arXiv 2508.00553.

    1. Anchors: the ``round(budget * anchor_share / 5)`` tokens of highest importance at the
       shallow layer; Python rounds halves to even.
    2. Buffers: the ids one less and more than an anchor's and a grid row less and more, clamped to
       0 and N - 1. As published, the neighbour of a row's end is the next row's start.
    3. Registers: the tokens of highest importance at the deep layer fill the budget.

    Should anchors and buffers be more than the budget, anchors come first, then buffers by their
    importance at the deep layer; the published code fails there.

    Args:
        anchor_share: the paper's alpha, 0 to 5: share of the budget for anchors and buffers.
        as_published: 1 is subtracted from the deep importance of anchors and buffers instead of
            leaving them out of step 3. Where importance can exceed 1, as sums over queries do, a
            token may be chosen twice: ids end in -1 then, and these rows of tokens are 0.

    Raises:
        ValueError: an argument is out of range.
    """

    place = "encoder"
    needs = frozenset({"importance", "shallow_importance", "grid"})

    def __init__(self, anchor_share: float = 0.1, as_published: bool = False) -> None:
        require_between("anchor_share", anchor_share, 0, CROSS)
        require_bool("as_published", as_published)
        self.anchor_share, self.as_published = anchor_share, as_published
        self.exact = not as_published
        # Its rows of tokens are not those of its ids.
        self.needs = HiPrune.needs | ({"final_tokens"} if as_published else set())

    @without_autocast
    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """Ids ascending; as published, also the tokens and how many there are."""
        deep = widen(required(inputs.importance))
        num_anchors = round(budget * self.anchor_share / CROSS)
        anchors = top(required(inputs.shallow_importance), num_anchors)
        buffers = _neighbours(anchors, required(inputs.grid)[1], deep.shape[1])
        cross = torch.cat([anchors, buffers], dim=1)
        first = deep.new_full(anchors.shape, math.inf)
        scores = torch.cat([first, deep.gather(1, buffers)], dim=1)
        ids = torch.ops.ocvtp.resolve_picks(cross, scores, deep, budget)
        if not self.as_published:
            return Selected(ids)
        return _published(cross, ids, deep, inputs.final_tokens)


def _neighbours(anchors: Tensor, width: int, num_tokens: int) -> Tensor:
    """The four neighbours of every anchor: ``[B, A]`` -> ``[B, 4 A]``."""
    steps = (-1, 1, -width, width)
    return torch.cat([anchors + step for step in steps], dim=1).clamp(0, num_tokens - 1)


def _published(cross: Tensor, ids: Tensor, deep: Tensor, tokens: Tensor) -> Selected:
    """What the published code keeps, ``ids`` being what it would keep without overlap."""
    budget, num_tokens = ids.shape[1], deep.shape[1]
    in_cross = membership(cross, num_tokens)
    num_registers = budget - in_cross.sum(dim=1, keepdim=True)
    order = ranking(deep - in_cross.to(deep.dtype))
    index = torch.arange(num_tokens, device=ids.device).expand_as(order)
    is_register = torch.zeros_like(order).scatter(1, order, index) < num_registers
    is_kept = in_cross & membership(ids, num_tokens) | is_register
    kept = torch.where(is_kept, index, num_tokens).sort(dim=1).values[:, :budget]
    missing = kept == num_tokens
    rows = gather_tokens(tokens, kept.clamp_max(num_tokens - 1))
    rows = rows.masked_fill(missing[..., None], 0)
    return Selected(kept.masked_fill(missing, -1), rows, None, is_kept.sum(dim=1))
