"""HoloV: every part of the image has a share of the budget, by the attention that it receives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.checks import require_at_least, require_between, require_bool
from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, without_autocast
from ocvtp_kernels.selectors.ranking import directions, ranking
from ocvtp_kernels.selectors.scores import needs_of_score, read_score

EPS = 1e-6  # of the published code, beside the variance
ROUNDING = 1e-6  # by which a share of the budget may miss a whole number


class HoloV:
    """Holistic context retention, NeurIPS 2025, arXiv 2510.02912.

    1. The tokens, row by row, are cut into ``num_patches`` chunks whose sizes differ by at most
       one, the first ones larger; into N of fewer tokens.
    2. ``S_ij`` is the cosine of two tokens of a chunk of n, 0 for i = j; ``mean_i = sum_j S_ij /
       (n - 1)``; ``var_i = sum_j (S_ij - mean_i)^2 / (n - 1)``.
    3. A chunk's weight is the mean over its tokens of
       ``a_i + alpha * var_i * mean(a) / (mean(var) + 1e-6)``, where a is their attention, over the
       sum of all chunks' weights.
    4. A chunk's quota is ``floor(weight * budget)``; what is left of the budget goes to the chunks
       of largest weight, one each. What exceeds a chunk's size goes to the others by their weight:
       the first with room takes as much as it has, then the next.
    5. Each chunk keeps its quota of tokens, by attention.

    Ties go to the lowest chunk and id. Attention that is negative or NaN counts as 0 for weights.
    Published between projector and language model; its attention is times 1000, which changes
    nothing.

    Args:
        alpha: at least 0.
        num_patches: chunks, at least 1.
        score: the field of `SelectorInputs` that stands for the attention: "cls_attention", or of
            a tower without CLS token "importance"; or "relevance", the caller's own.
        as_published: what exceeds a chunk's size is lost; ids end in -1 there, and these rows of
            tokens are 0.

    Raises:
        ValueError: an argument is out of range.
    """

    place = "projector"

    def __init__(
        self,
        alpha: float = 0.09,
        num_patches: int = 16,
        score: str = "cls_attention",
        as_published: bool = False,
    ) -> None:
        require_between("alpha", alpha, 0, torch.finfo(torch.float32).max)
        require_at_least("num_patches", num_patches, 1)
        require_bool("as_published", as_published)
        self.needs = needs_of_score(score)
        self.alpha, self.num_patches, self.score = float(alpha), num_patches, score
        self.exact = not as_published

    @without_autocast
    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """Ids ascending; as published, also the tokens and how many there are."""
        attention, tokens = read_score(inputs, self.score), inputs.final_tokens
        chunks = cut(tokens.shape[1], self.num_patches, tokens.device)
        weight = self._weigh(tokens, attention, chunks)
        quota = share_out(weight, chunks.sizes, budget, self.exact)
        is_kept = keep_quota(attention, quota, chunks)
        ids = (~is_kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :budget]
        if self.exact:
            return Selected(ids)
        found = is_kept.sum(dim=1)
        missing = torch.arange(budget, device=ids.device) >= found[:, None]
        rows = gather_tokens(tokens, ids).masked_fill(missing[..., None], 0)
        return Selected(ids.masked_fill(missing, -1), rows, found=found)

    def _weigh(self, tokens: Tensor, attention: Tensor, chunks: Chunks) -> Tensor:
        """Each chunk's share of the budget: float64 ``[B, P]``, at least 0, of sum 1 or less."""
        counts = chunks.sizes.double()
        attention = torch.where(attention > 0, attention, 0).double()

        def mean(values: Tensor) -> Tensor:
            return values.masked_fill(~chunks.valid, 0).sum(dim=2) / counts

        by_chunk, variance = mean(attention[:, chunks.ids]), mean(variance_of(tokens, chunks))
        score = by_chunk * (1 + self.alpha * variance / (variance + EPS))
        # Of attention that is 0 or infinite there is no share.
        return (score / score.sum(dim=1, keepdim=True)).nan_to_num(nan=0.0)


class Chunks(NamedTuple):
    """P chunks of up to M tokens, which follow on one another."""

    ids: Tensor  # int64 [P, M], of the tokens; of some token where a chunk has none
    valid: Tensor  # bool [P, M], False: none
    sizes: Tensor  # int64 [P]


def cut(num_tokens: int, num_chunks: int, device: torch.device) -> Chunks:
    """Chunks whose sizes differ by at most one, the first ones larger; none is empty."""
    count = min(num_chunks, num_tokens)
    chunk = torch.arange(count, device=device)
    size, larger = num_tokens // count, num_tokens % count
    sizes = size + (chunk < larger).long()
    place = torch.arange(-(-num_tokens // count), device=device)
    ids = (chunk * size + chunk.clamp_max(larger))[:, None] + place
    return Chunks(ids.clamp_max(num_tokens - 1), place < sizes[:, None], sizes)


def variance_of(tokens: Tensor, chunks: Chunks) -> Tensor:
    """``var_i`` of every token within its chunk, float64 ``[B, P, M]``; NaN counts as unlike."""
    rows = directions(tokens)[:, chunks.ids]
    similarity = torch.matmul(rows, rows.transpose(2, 3)).nan_to_num(nan=0.0)
    is_pair = chunks.valid[:, :, None] & chunks.valid[:, None]
    similarity = similarity.masked_fill(~is_pair, 0).double()
    similarity.diagonal(dim1=2, dim2=3).zero_()
    others = (chunks.sizes - 1).clamp_min(1)[:, None]
    mean = similarity.sum(dim=3) / others
    squares = (similarity - mean[..., None]).square().masked_fill(~is_pair, 0)
    return squares.sum(dim=3) / others


def share_out(weight: Tensor, sizes: Tensor, budget: int, exact: bool) -> Tensor:
    """How many tokens each chunk keeps, at most its size.

    Args:
        weight: ``[B, P]``, at least 0, of sum 1 or less.
        sizes: int64 ``[P]``.
        budget: at most the sum of the sizes.
        exact: whether what exceeds a chunk's size goes to others.

    Returns:
        int64 ``[B, P]``; of sum ``budget`` if ``exact``.
    """
    quota = (weight * budget + ROUNDING).floor().long()
    by_weight = ranking(weight)
    index = torch.arange(len(sizes), device=sizes.device).expand_as(by_weight)
    rank = torch.zeros_like(by_weight).scatter(1, by_weight, index)
    quota = quota + (rank < budget - quota.sum(dim=1, keepdim=True))
    quota = torch.minimum(quota, sizes)
    if not exact:
        return quota
    room = (sizes - quota).gather(1, by_weight)
    left = budget - quota.sum(dim=1, keepdim=True)
    more = torch.minimum(room, (left - room.cumsum(dim=1) + room).clamp_min(0))
    return quota.scatter_add(1, by_weight, more)


def keep_quota(attention: Tensor, quota: Tensor, chunks: Chunks) -> Tensor:
    """Which tokens are the first of their chunks by attention: bool ``[B, N]``."""
    batch, num_tokens = attention.shape
    by_chunk = attention[:, chunks.ids].masked_fill(~chunks.valid, -torch.inf)
    # Of equal attention the first comes first, so what is no token stands behind all that are.
    order = ranking(by_chunk.flatten(0, 1)).view_as(by_chunk)
    index = torch.arange(order.shape[2], device=order.device).expand_as(order)
    is_first = torch.zeros_like(order).scatter(2, order, index) < quota[..., None]
    places = torch.where(chunks.valid, chunks.ids, num_tokens).flatten().expand(batch, -1)
    kept = is_first.new_zeros((batch, num_tokens + 1)).scatter(1, places, is_first.flatten(1))
    return kept[:, :num_tokens]
