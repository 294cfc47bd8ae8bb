"""VLM-Pruner's centrifugal expansion of one image in plain PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ocvtp_kernels.ops.ordering import nan_last


@dataclass
class State:
    """Where the expansion of one image stands; all of a token follows from its nearest picks."""

    similarity: Tensor  # [N, N]
    squares: Tensor  # int64 [N, N], squared distances on the grid
    order: list[int]
    best: Tensor  # [N], largest similarity to a pick; NaN, which stays, of a NaN token
    assignment: Tensor  # int64 [N], the first pick that has it, by its index in the order
    nearest: Tensor  # int64 [N], smallest squared distance to a pick
    taken: Tensor  # bool [N]

    def pick(self, token: int) -> None:
        row = nan_last(self.similarity[token])
        closer = row > self.best
        self.best = torch.where(closer, row, self.best)
        self.assignment = self.assignment.masked_fill(closer, len(self.order))
        self.nearest = torch.minimum(self.nearest, self.squares[token])
        self.taken[token] = True
        self.order.append(token)

    def redundancy(self, spread: float, diameter: float) -> Tensor:
        """``max_s similarity_js * (1 + spread * distance_j)``: ``[N]``.

        The factor is positive and the same for every pick s, so it may follow the maximum.
        """
        distance = self.nearest.to(self.best.dtype).sqrt() / diameter
        return self.best * (1 + spread * distance)


def grid_squares(height: int, width: int, device: torch.device) -> Tensor:
    """Squared Euclidean distances between the cells of a grid, row by row: int64 ``[N, N]``."""
    cell = torch.arange(height * width, device=device)
    rows, columns = cell // width, cell % width
    return (rows[:, None] - rows).square() + (columns[:, None] - columns).square()


def expand(
    similarity: Tensor,
    squares: Tensor,
    pivots: list[int],
    budget: int,
    spread: tuple[float, float],
    thresholds: tuple[float, float],
    chunk: int,
) -> State:
    """The expansion of one image, as far as it comes."""
    num_tokens, own = similarity.shape[0], similarity.diagonal()
    state = State(
        similarity,
        squares,
        [],
        own.where(own.isnan(), -math.inf),
        torch.zeros(num_tokens, dtype=torch.int64, device=similarity.device),
        squares.new_full((num_tokens,), 2 * num_tokens**2),
        torch.zeros(num_tokens, dtype=torch.bool, device=similarity.device),
    )
    for token in pivots:
        state.pick(token)
    limit, before = thresholds[0], -1
    while before < len(state.order) < budget:
        before = len(state.order)
        ranking = rank(state, *spread)
        for start in range(0, len(ranking), chunk):
            if start == chunk and len(state.order) == before:
                break
            tokens = ranking[start : start + chunk]
            redundancy = state.redundancy(*spread)[tokens]
            # Compared in the dtype computed in, as every kernel does.
            accepted = redundancy < redundancy.new_tensor(limit)
            room = budget - len(state.order)
            if int(accepted.sum()) > room:
                merit = (1 - redundancy).masked_fill(~accepted, -math.inf)
                best = merit.sort(descending=True, stable=True).indices[:room]
                accepted = torch.zeros_like(accepted).scatter(0, best, True)
            for token, is_accepted in zip(tokens, accepted.tolist(), strict=True):
                if is_accepted:
                    state.pick(token)
            if len(state.order) == budget:
                break
        limit += thresholds[1]
    return state


def rank(state: State, spread: float, diameter: float) -> list[int]:
    """The tokens left, least redundant first, NaN tokens after all others."""
    merit = nan_last(1 - state.redundancy(spread, diameter))
    order = merit.sort(descending=True, stable=True).indices
    is_nan = state.best[order].isnan()
    order = torch.cat([order[~is_nan], order[is_nan]])
    ranked: list[int] = order[~state.taken[order]].tolist()
    return ranked
