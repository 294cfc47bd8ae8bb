"""LLaVA-PruMerge and PruMerge+: tokens of most CLS attention, each with its nearest merged in."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.checks import require_at_least, require_bool
from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, required, without_autocast
from ocvtp_kernels.selectors.ranking import cosine_with, top, widen
from ocvtp_kernels.selectors.trim import merge_dropped


class PruMerge:
    """Adaptive token reduction at a fixed budget, arXiv 2403.15388.

    1. The tokens of most CLS attention.
    2. Each kept token adds its ``neighbours`` nearest others by the cosine of their keys, kept or
       not, each times its attention (a sum that is not normalised).
    3. ``extra`` ``[B, 1, C]``: the dropped tokens, each times its attention, added up, beyond the
       budget.

    PruMerge+ replaces step 1. Its published number of tokens is not fixed, so this rule is ours:

    * a quarter of the budget by attention, at least one token, as the published share;
    * of the tokens at 0, s, 2 s ..., with the published stride ``s = (N // quarter) // 3``, at
      least 1, those not chosen yet, in positional order: all of them, or if they are too many as
      many as the budget allows, evenly (the k-th of m from g is number ``k * g // m``);
    * the next best by attention, up to the budget.

    The published budget is adaptive, from outliers of the attention.

    Args:
        neighbours: at least 0; at most N - 1 count.
        spatial: whether it is PruMerge+.

    Raises:
        ValueError: an argument is out of range.
    """

    place = "encoder"
    needs = frozenset({"cls_attention", "keys", "final_tokens"})

    def __init__(self, neighbours: int = 32, spatial: bool = False) -> None:
        require_at_least("neighbours", neighbours, 0)
        require_bool("spatial", spatial)
        self.neighbours, self.spatial = neighbours, spatial

    @without_autocast
    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """Ids ascending, the tokens and the merged rest."""
        keys, tokens = required(inputs.keys), inputs.final_tokens
        attention = widen(required(inputs.cls_attention))
        ids = spread_out(attention, budget) if self.spatial else top(attention, budget)
        merged = gather_tokens(tokens, ids) + self._nearest(ids, keys, attention, tokens)
        rest, _ = merge_dropped(tokens, ids, attention)
        return Selected(ids, merged.to(tokens.dtype), extra=rest.to(tokens.dtype))

    def _nearest(self, ids: Tensor, keys: Tensor, attention: Tensor, tokens: Tensor) -> Tensor:
        """The weighted sum of each kept token's nearest others: ``[B, T, C]``."""
        (batch, budget), num_tokens = ids.shape, keys.shape[1]
        count = min(self.neighbours, num_tokens - 1)
        # Below any cosine: NaN at -2, the token itself at -3.
        similarity = cosine_with(ids, keys).nan_to_num(nan=-2.0).scatter(2, ids[..., None], -3.0)
        nearest = top(similarity.flatten(0, 1), count).view(batch, budget, count)
        dtype = torch.promote_types(attention.dtype, widen(tokens[:, :0]).dtype)
        # A token may be assigned to several kept ones, so this is a matrix product, no scatter.
        by_pair = attention.gather(1, nearest.flatten(1)).view_as(nearest).to(dtype)
        weights = by_pair.new_zeros((batch, budget, num_tokens)).scatter(2, nearest, by_pair)
        return torch.bmm(weights, tokens.to(dtype))


def spread_out(attention: Tensor, budget: int) -> Tensor:
    """Step 1 of PruMerge+: ``[B, N]`` -> ids int64 ``[B, budget]``, ascending."""
    num_tokens = attention.shape[1]
    quarter = max(1, budget // 4)
    best = top(attention, quarter)
    grid = torch.arange(0, num_tokens, max(1, num_tokens // quarter // 3), device=best.device)
    grid = grid.expand(best.shape[0], -1)
    is_new = (grid[:, :, None] != best[:, None]).all(dim=2)
    rank, num_new = is_new.cumsum(dim=1) - 1, is_new.sum(dim=1, keepdim=True).clamp_min(1)
    rest = budget - quarter
    # n = k * num_new // rest for an integer k if a multiple of num_new is in
    # [n * rest, (n + 1) * rest).
    is_taken = is_new & ((-rank * rest).remainder(num_new) < rest)
    # A pick that occurs twice counts once.
    picks = torch.cat([best, torch.where(is_taken, grid, best[:, :1])], dim=1)
    scores = attention.new_zeros(picks.shape)
    ids: Tensor = torch.ops.ocvtp.resolve_picks(picks, scores, attention, budget)
    return ids
