"""VLM-Pruner and DivPrune as their published code runs them, to be compared with.

Written from their description: one image after the other, the similarity of every two tokens from
expanded views, Python sets and lists, and what a step compares taken anew over all picks so far.
Where the published sorts leave ties open, the lowest index comes first here.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def choose_pivots(keys: Tensor, count: int) -> list[int]:
    """Stage 1 of VLM-Pruner: keys ``[N, D]`` -> ids in the order picked."""
    picked = [int(keys.abs().sum(dim=-1).argmax())]
    while len(picked) < count:
        distances = torch.cdist(keys, keys[picked])
        picked.append(int(distances.min(dim=1).values.argmax()))
    return picked


def screened_similarity(tokens: Tensor, channels: int) -> Tensor:
    """Cosine on the channels of largest variance: tokens ``[N, C]`` -> ``[N, N]``."""
    variance = tokens.var(dim=0)
    screened = tokens[:, variance.argsort(descending=True, stable=True)[:channels]]
    shape = (len(tokens), *screened.shape)
    rows, columns = screened.unsqueeze(1).expand(shape), screened.unsqueeze(0).expand(shape)
    return F.cosine_similarity(rows, columns, dim=-1)


def grid_distances(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Euclidean distances between the cells of a grid, float32 ``[N, N]``."""
    cell = torch.arange(grid[0] * grid[1], device=device)
    cells = torch.stack([cell % grid[1], cell // grid[1]], dim=1).float()
    return (cells.unsqueeze(1) - cells.unsqueeze(0)).square().sum(dim=-1).sqrt()


class Expansion:
    """Stage 2 of VLM-Pruner: the centrifugal expansion of one image.

    Args:
        similarity: ``[N, N]``; grid: N = rows * columns; the rest as in `vlm_pruner`.
    """

    def __init__(
        self,
        similarity: Tensor,
        grid: tuple[int, int],
        spread: float = 0.5,
        threshold: float = 0.8,
        step: float = 0.1,
        chunk: int = 16,
    ) -> None:
        self.similarity, self.distances = similarity, grid_distances(grid, similarity.device)
        self.diameter = math.hypot(*grid)
        self.spread, self.threshold, self.step, self.chunk = spread, threshold, step, chunk

    def redundancy(self, tokens: list[int], picked: list[int]) -> Tensor:
        """The largest similarity of each token with a pick, raised by its distance."""
        nearest = self.distances[tokens][:, picked].min(dim=1).values / self.diameter
        raised = self.similarity[tokens][:, picked] * (1 + self.spread * nearest.unsqueeze(1))
        return raised.max(dim=1).values

    def ranked(self, picked: list[int]) -> list[int]:
        """The remaining tokens, least redundant first."""
        remaining = sorted(set(range(len(self.similarity))) - set(picked))
        merit = 1 - self.redundancy(remaining, picked)
        return [remaining[index] for index in merit.argsort(descending=True, stable=True).tolist()]

    def run(self, pivots: list[int], budget: int) -> list[int]:
        """Ids in the order picked, the pivots first; may be fewer than the budget."""
        picked = list(pivots)
        limit, before = self.threshold - self.step, 0
        while len(picked) < budget:
            if before == len(picked):
                break
            before = len(picked)
            limit += self.step
            ranked = self.ranked(picked)
            for start in range(0, len(ranked), self.chunk):
                if start == self.chunk and len(picked) == before:
                    break
                picked += self._accepted(
                    ranked[start : start + self.chunk], picked, limit, budget - len(picked)
                )
                if len(picked) >= budget:
                    break
        return picked

    def _accepted(
        self, tokens: list[int], picked: list[int], limit: float, budget: int
    ) -> list[int]:
        redundancy = self.redundancy(tokens, picked)
        accepted = (redundancy < limit).nonzero().flatten().tolist()
        if len(accepted) > budget:
            best = (1 - redundancy)[accepted].argsort(descending=True, stable=True)[:budget]
            accepted = sorted({accepted[index] for index in best.tolist()})
        return [tokens[index] for index in accepted]


def recover(tokens: Tensor, similarity: Tensor, picked: list[int], own_share: float) -> Tensor:
    """Stage 3 of VLM-Pruner: the picked rows ``[T, C]`` with the rest merged into them."""
    kept = tokens[picked].clone()
    remaining = sorted(set(range(len(tokens))) - set(picked))
    if not remaining:
        return kept
    likeness = similarity[remaining][:, picked]
    nearest = likeness.max(dim=1).indices
    weights = torch.zeros_like(likeness)
    rows = torch.arange(len(remaining), device=tokens.device)
    weights[rows, nearest] = likeness[rows, nearest]
    weights = weights / weights.sum(dim=0, keepdim=True).clamp_min(1e-8)
    merged = weights.to(tokens.dtype).T @ tokens[remaining]
    is_merged = weights.sum(dim=0) > 0
    kept[is_merged] = own_share * kept[is_merged] + (1 - own_share) * merged[is_merged]
    return kept


def vlm_pruner(
    tokens: Tensor,
    keys: Tensor,
    grid: tuple[int, int],
    budget: int,
    pivots: int = 4,
    channels: int = 256,
    own_share: float = 0.3,
) -> tuple[list[int], Tensor]:
    """VLM-Pruner, arXiv 2512.02700, on one image.

    Args:
        tokens: ``[N, C]``, hidden states; keys: ``[N, D]``, heads side by side.
        grid: rows and columns of the tokens; budget: T.

    Returns:
        ids ascending, at most T, and their tokens with the rest merged in.
    """
    similarity = screened_similarity(tokens, channels)
    picked = choose_pivots(keys, min(pivots, budget))
    picked = Expansion(similarity, grid).run(picked, budget)
    merged = recover(tokens, similarity, picked, own_share)
    by_id = sorted(range(len(picked)), key=picked.__getitem__)
    return [picked[index] for index in by_id], merged[by_id]


def divprune(tokens: Tensor, budget: int) -> list[int]:
    """DivPrune, arXiv 2503.02175, on one image.

    Args:
        tokens: ``[N, C]``, at least two; budget: T.

    Returns:
        ids in the order picked; duplicates may be picked twice.
    """
    unit = tokens / tokens.norm(dim=1, keepdim=True)
    return farthest(1 - unit @ unit.T, budget)


def farthest(distances: Tensor, budget: int) -> list[int]:
    """DivPrune's loop, from its distances ``[N, N]``."""
    picked: list[int] = []
    for step in range(budget):
        if step == 0:
            nearest = distances.topk(2, dim=0, largest=False).values[1]
        else:
            rows = torch.tensor(picked, device=distances.device)
            nearest = distances.index_select(0, rows).min(dim=0).values
        picked.append(int(nearest.argmax()))
    return picked
