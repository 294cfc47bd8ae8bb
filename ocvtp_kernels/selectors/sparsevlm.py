"""SparseVLM: the tokens that words of the question attend to, and the best of the rest merged."""

from __future__ import annotations

import copy
import math
from functools import partial

import torch
from torch import Tensor

from ocvtp_kernels.checks import require_at_least, require_bool, require_int
from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.ops.ordering import nan_last
from ocvtp_kernels.pruner import seeded
from ocvtp_kernels.selectors.interface import (
    Selected,
    SelectorInputs,
    Stage,
    required,
    without_autocast,
)
from ocvtp_kernels.selectors.ranking import group_means, ranking, top, widen
from ocvtp_kernels.selectors.schedule import Schedule, read_schedule

# The published counts of version 1.5, by budget, and the layers behind which they are left, of 32.
COUNTS = {64: (66, 30, 17), 96: (238, 48, 26), 128: (303, 110, 36), 192: (300, 200, 110)}
LAYERS, DEPTH = (2, 6, 15), 32
NOISE = 1e-6  # the most that is added to a density
ROUNDING = 1e-12  # of two squared norms, what their distance may be by rounding alone


class SparseVLM:
    """Tokens dropped in stages by attention in the decoder, ICML 2025, arXiv 2410.04417.

    A stage of n tokens

    1. keeps the ``min(count, n - 1)`` of largest ``text_attention``: what the raters, words of the
       question that are closest to the image, pay them in the layer before, mean over raters and
       heads;
    2. with ``recycle``, clusters the best ``int(0.3 * d) + 1`` of the d others into a tenth as many
       and one (`cluster`, DPC-kNN). A centre stands at its own place and becomes the mean of its
       cluster's hidden states.

    Counts are those of version 1.5: 66, 30 and 17 for a budget of 64; 238, 48 and 26 for 96; 303,
    110 and 36 for 128; 300, 200 and 110 for 192. A budget stands for the whole decoder, whose last
    layers have fewer tokens. They hold behind layers 2, 6 and 15 of 32, from 0, and behind
    ``round(layer * depth / 32)`` of another depth.

    Published with centres behind the kept tokens and the positions counted anew at every stage.

    Args:
        recycle: whether step 2 is done.
        schedule: pairs of a layer, before which tokens are dropped, and a count of step 1 instead;
            an image of no more tokens than the budget is left alone, whatever the counts are.
        seed: of the noise on densities, the same for every image.
        as_published: the noise is drawn anew at every call, from torch's global generator.

    Raises:
        ValueError, TypeError: an argument is out of range, see also `read_schedule`.
    """

    place = "decoder"
    text_rows = "raters"
    text_layer = "before"

    def __init__(
        self,
        recycle: bool = True,
        schedule: Schedule | None = None,
        seed: int = 0,
        as_published: bool = False,
    ) -> None:
        require_bool("recycle", recycle)
        require_int("seed", seed)
        require_bool("as_published", as_published)
        self.recycle, self.seed, self.as_published = recycle, seed, as_published
        self.schedule = read_schedule(schedule)
        self.needs = frozenset({"text_attention"} | ({"final_tokens"} if recycle else set()))
        self._most: int | None = None  # tokens that a stage keeps as they are

    def stages(self, budget: int, depth: int) -> tuple[Stage, ...]:
        """The schedule's stages.

        Raises:
            ValueError: there are no published counts for this budget, or no three layers in this
                depth, and no schedule.
        """
        steps = _published(budget, depth) if self.schedule is None else self.schedule
        return tuple(
            Stage(layer, partial(self._count, most), self._keeping(most)) for layer, most in steps
        )

    def _count(self, most: int, num_tokens: int) -> int:
        """Tokens that a stage keeps in all."""
        kept = min(most, num_tokens - 1)
        return kept + num_centres(num_tokens - kept) if self.recycle else max(1, kept)

    def _keeping(self, most: int) -> SparseVLM:
        """The same for one stage."""
        stage = copy.copy(self)
        stage._most = most
        return stage

    @without_autocast
    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """A stage of ``budget`` tokens in all: ids ascending, and the tokens where any are merged.

        With ``recycle`` as many are kept as they are as leave room for their centres.
        """
        scores, tokens = required(inputs.text_attention), inputs.final_tokens
        num_tokens = scores.shape[1]
        if not self.recycle or budget == num_tokens:
            return Selected(top(scores, budget))
        num_kept = most_kept(num_tokens, budget)
        if self._most is not None:
            num_kept = min(num_kept, self._most)
        count = budget - num_kept
        num_others = max(num_candidates(num_tokens - num_kept), count)
        order = ranking(scores)
        kept = order[:, :num_kept]
        candidates = order[:, num_kept : num_kept + num_others].sort(dim=1).values
        centres, merged = self._merge(gather_tokens(tokens, candidates), count)
        ids, by_id = torch.cat([kept, candidates.gather(1, centres)], dim=1).sort(dim=1)
        rows = torch.cat([gather_tokens(tokens, kept), merged], dim=1)
        return Selected(ids, gather_tokens(rows, by_id))

    def _merge(self, states: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The centres among candidates, ``[B, count]``, and their clusters' means."""
        centres, assignment = cluster(states, count, self._noise(states))
        return centres, group_means(states, assignment, count).to(states.dtype)

    def _noise(self, states: Tensor) -> Tensor:
        """Uniform, 0 to 1, float64 ``[B, M]`` or ``[M]``."""
        batch, num_states, _ = states.shape
        like = states.new_empty((batch, num_states), dtype=torch.float64)
        if self.as_published:
            return torch.rand_like(like)
        # Where a normal number stands in its distribution is uniform.
        return torch.special.ndtr(seeded.noise(like[..., None], self.seed, num_states))


def _published(budget: int, depth: int) -> tuple[tuple[int, int], ...]:
    require_at_least("budget", budget, 1)
    if budget not in COUNTS:
        raise ValueError(
            f"budget: expected one of {', '.join(map(str, COUNTS))}, for which SparseVLM has "
            f"published counts, or a schedule; got {budget}"
        )
    layers = [round(layer * depth / DEPTH) + 1 for layer in LAYERS]
    if len(set(layers)) < len(layers):
        raise ValueError(
            f"schedule: expected one for a decoder of {depth} layers, in which the published "
            f"layers are no three; got None"
        )
    return tuple(zip(layers, COUNTS[budget], strict=True))


def num_candidates(num_others: int) -> int:
    """How many of the tokens not kept are clustered; at least one is not kept."""
    return 3 * num_others // 10 + 1


def num_centres(num_others: int) -> int:
    """How many clusters they make."""
    return num_candidates(num_others) // 10 + 1


def most_kept(num_tokens: int, budget: int) -> int:
    """The most tokens that can be kept such that these and the centres are within the budget.

    It is 0 where the centres alone are more.

    Args:
        budget: less than ``num_tokens``.
    """
    # There are (3 * (n - kept) + 10) // 100 + 1 centres, by nested floors; solved for kept.
    return max(0, (100 * budget - 3 * num_tokens - 11) // 97)


def cluster(states: Tensor, count: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Density peaks of k nearest neighbours (DPC-kNN), as of TCFormer, arXiv 2204.08680.

    With distances over the square root of the width, and a state among its own neighbours:

    * density: ``exp(-mean of the squared distances to the count nearest) + 1e-6 * noise``;
    * score: density times the distance to the nearest denser state, or of the densest to the
      farthest;
    * centres: those of largest score, ties to the lowest. Every other state goes to the nearest.

    Args:
        states: ``[B, M, C]``.
        count: centres, 1 to M.
        noise: 0 to 1, ``[B, M]`` or ``[M]``.

    Returns:
        centres int64 ``[B, count]``, ascending, and by state the place of its centre among them,
        int64 ``[B, M]``; -1 for states that are not finite and no centre.
    """
    distances = distances_between(states) / max(1, states.shape[2]) ** 0.5
    nearest = distances.topk(count, dim=2, largest=False).values
    # In float32 most of the noise would be rounded off.
    density = (-nearest.double().square().mean(dim=2)).exp() + NOISE * noise
    is_denser = density[:, None] > density[..., None]
    to_denser = distances.masked_fill(~is_denser, math.inf).amin(dim=2)
    farthest = distances.masked_fill(distances.isnan(), 0).amax(dim=2)
    score = density * torch.where(is_denser.any(dim=2), to_denser, farthest)
    centres = ranking(score)[:, :count].sort(dim=1).values
    assignment = nan_last(-gather_tokens(distances, centres)).argmax(dim=1)
    is_finite = distances.diagonal(dim1=1, dim2=2) == 0
    assignment = assignment.masked_fill(~is_finite, -1)
    own = torch.arange(count, device=centres.device).expand_as(centres)
    return centres, assignment.scatter(1, centres, own)


def distances_between(states: Tensor) -> Tensor:
    """Euclidean distances of every two states, ``[B, M, C]`` -> ``[B, M, M]``, float32 or wider.

    NaN where a state is not finite; 0 where both are equal, or as good as.
    """
    # In float64, and rounded at the end: the order that a BLAS sums in then changes nothing.
    exact = states.double()
    norms = exact.square().sum(dim=2)
    norms = norms[:, :, None] + norms[:, None]
    squares = norms - 2 * torch.bmm(exact, exact.transpose(1, 2))
    squares = squares.masked_fill(squares < ROUNDING * norms, 0)
    distances = squares.sqrt().to(widen(states[:, :0]).dtype)
    return distances.masked_fill(distances.isinf(), math.nan)
