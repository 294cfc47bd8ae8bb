"""ToMe: similar tokens merge, layer by layer of the vision tower."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.dtypes import acc_dtype
from ocvtp_kernels.ops.bipartite_merge import most_merged
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, required, without_autocast
from ocvtp_kernels.selectors.similarity import mean_over_heads

TOME_PLACES = ("tower", "encoder")


class ToMe:
    """Token Merging, ICLR 2023, arXiv 2210.09461.

    In every layer, between attention and MLP, the tokens stand alternately in A and B. Each of A
    names the one of B whose key, mean over heads, has the largest cosine with its own; the r of A
    with the largest such cosines merge into those that they name. A merged token is the mean
    weighted by size, the number of patches that a token stands for, and log(size) is added to the
    attention logits (proportional attention). The CLS token never merges. r is the same in all
    layers, the smallest by which the last one reaches the budget, where it merges what is left.

    `attach` merges so in the CLIP or SigLIP tower of LLaVA-1.5. Called on tokens, as `select`
    does, it merges these in rounds of at most half, without attention between them.

    The tokens of a result stand in the order of those that were merged into, their ids; the
    published code lists those of A first.

    Args:
        place: "tower"; or "encoder", its output, for any model whose encoder has keys.
        heads: heads side by side in the keys, over which they are averaged; the inputs'
            ``num_heads`` if None, and without one the keys count as averaged already.

    Raises:
        ValueError: an argument is out of range.
    """

    needs = frozenset({"final_tokens", "keys"})
    wants = frozenset({"num_heads"})

    def __init__(self, place: str = "tower", heads: int | None = None) -> None:
        checks.require_one_of("place", place, TOME_PLACES)
        if heads is not None:
            checks.require_at_least("heads", heads, 1)
        self.place, self.heads = place, heads

    def merges(self, budget: int, num_tokens: int, depth: int, num_prefix: int) -> tuple[int, ...]:
        """See `SelectorAttributes`."""
        return constant_schedule(budget, num_tokens, depth, num_prefix)

    @without_autocast
    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """Ids ascending, the merged tokens, and the groups.

        Raises:
            ValueError: the keys are no such heads.
        """
        tokens = inputs.final_tokens
        keys = mean_over_heads(required(inputs.keys), self.heads or inputs.num_heads)
        batch, num_tokens, width = tokens.shape
        merged = MergedTokens(batch, num_tokens, tokens.device)
        wide = torch.promote_types(acc_dtype(tokens.dtype), keys.dtype)
        # Keys are merged along with their tokens.
        rows = torch.cat([tokens.to(wide), keys.to(wide)], dim=-1)
        while (left := rows.shape[1]) > budget:
            rows = merged.merge(rows, rows[..., width:], min(left - budget, most_merged(left, 0)))
        return Selected(merged.ids, rows[..., :width].to(tokens.dtype), groups=merged.groups)


class MergedTokens:
    """Which tokens of B images have become one.

    Attributes:
        sizes: float32 ``[B, n]``, how many each stands for; None where all are as they were.
        ids: int64 ``[B, n]``, ascending: of each the token that others were merged into.
        groups: int64 ``[B, N]``: of each token that there was, the one it has become, 0 to n - 1.
    """

    def __init__(self, batch: int, num_tokens: int, device: torch.device) -> None:
        self.sizes: Tensor | None = None
        self.ids = torch.arange(num_tokens, device=device).repeat(batch, 1)
        self.groups = self.ids

    def merge(self, tokens: Tensor, keys: Tensor, num_merged: int, num_prefix: int = 0) -> Tensor:
        """Merges ``num_merged`` of the tokens: ``[B, n, C]`` -> ``[B, n - num_merged, C]``.

        Args:
            tokens: ``[B, n, C]``.
            keys: ``[B, n, D]``.
            num_merged: r.
            num_prefix: tokens in front that neither merge nor are merged into.
        """
        batch, before, _ = tokens.shape
        sizes = self.sizes
        if sizes is None:
            sizes = tokens.new_ones((batch, before), dtype=torch.float32)
        tokens, self.sizes, assignment = torch.ops.ocvtp.bipartite_merge(
            tokens, keys, sizes, num_merged, num_prefix
        )
        # Of a group's tokens the odd one, which the others were merged into, or else the only one.
        places = torch.arange(before, device=tokens.device).expand(batch, before)
        survivors = assignment.new_zeros((batch, before - num_merged))
        for parity in (0, 1):
            survivors = survivors.scatter(1, assignment[:, parity::2], places[:, parity::2])
        self.ids = self.ids.gather(1, survivors)
        self.groups = assignment.gather(1, self.groups)
        return tokens


def constant_schedule(
    budget: int, num_tokens: int, depth: int, num_prefix: int = 0
) -> tuple[int, ...]:
    """How many tokens each layer merges, as many in every one until the budget is left.

    Args:
        budget: tokens left behind the last layer.
        num_tokens: N, without the prefix.
        depth: layers, at least 1.
        num_prefix: tokens that never merge.

    Raises:
        ValueError: as many layers cannot merge so many tokens; the message has the least budget.
    """
    least = num_tokens - sum(_merge_each(num_tokens, 0, num_tokens, depth, num_prefix))
    if budget < least:
        raise ValueError(
            f"budget: expected at least {least} of {num_tokens} tokens, as {depth} layers merge at "
            f"most half of them each, got {budget}"
        )
    fewest = -(-(num_tokens - budget) // depth)
    schedules = (
        _merge_each(each, budget, num_tokens, depth, num_prefix)
        for each in range(fewest, num_tokens + 1)
    )
    return next(merges for merges in schedules if sum(merges) == num_tokens - budget)


def _merge_each(
    each: int, budget: int, num_tokens: int, depth: int, num_prefix: int
) -> tuple[int, ...]:
    """What the layers merge, ``each`` where they can, down to the budget."""
    left, merges = num_tokens, []
    for _ in range(depth):
        merges.append(min(each, left - budget, most_merged(left + num_prefix, num_prefix)))
        left -= merges[-1]
    return tuple(merges)
