"""VLM-Pruner's centrifugal expansion in plain PyTorch: the oracle of its kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ocvtp_kernels.ops.greedy import nan_last


@dataclass
class _State:
    """Where the expansion of one image stands; all of a token follows from its nearest picks."""

    similarity: Tensor  # [N, N]
    squares: Tensor  # int64 [N, N], squared distances on the grid
    order: list[int]
    best: Tensor  # [N], largest similarity to a pick; NaN, which stays, of a NaN token
    owner: Tensor  # int64 [N], the first pick that has it, by its place in the order
    nearest: Tensor  # int64 [N], smallest squared distance to a pick
    taken: Tensor  # bool [N]

    def pick(self, token: int) -> None:
        row = nan_last(self.similarity[token])
        closer = row > self.best
        self.best = torch.where(closer, row, self.best)
        self.owner = self.owner.masked_fill(closer, len(self.order))
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


def centrifugal_select(
    similarity: Tensor,
    pivots: Tensor,
    height: int,
    width: int,
    budget: int,
    spread: float = 0.5,
    threshold: float = 0.8,
    step: float = 0.1,
    chunk: int = 16,
    pad: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centrifugal token expansion with the buffered spatial criterion (BSS).

    Starts from the pivots. A pass ranks the tokens left by ``1 - m`` descending, where
    ``m_j = max_s similarity_js * (1 + spread * d_j)`` and ``d_j`` is the distance on the grid to
    the nearest pick, as a share of the grid's diagonal. It walks the ranking in chunks: ``m`` is
    taken anew, all tokens of the chunk with ``m`` below the threshold are picked, in rank order
    (the least redundant, where they are too many), and if the first chunk picked none the pass
    ends. The next pass raises the threshold by ``step``; a pass without a pick is the last.
    Source: VLM-Pruner, arXiv 2512.02700, stage 2. Its loops end when the data says so: this
    reference goes image by image and waits for the device.

    A token is NaN where its similarity with itself is. It is ranked behind every number and never
    below a threshold: only padding picks it, by id, once no number is left. As a pivot it counts,
    but a similarity that is NaN is that of nothing, -inf.

    Args:
        similarity: ``[B, N, N]``, cosine.
        pivots: int64 ``[B, P]`` distinct ids; the first ``budget`` of them count.
        height, width: the grid; N = height * width.
        budget: T, 1 to N.
        spread: weight of the distance, at least 0.
        threshold: largest redundancy of the first pass.
        step: by how much each pass raises it.
        chunk: tokens judged at once.
        pad: whether a selection that ends short of the budget is filled with the least redundant
            of the tokens left, which the published code does not do.

    Returns:
        order: int64 ``[B, T]`` in the order picked; -1 past the count where ``pad`` is off.
        count: int64 ``[B]``, tokens picked before padding.
        owner: int64 ``[B, N]``: of a token left over, the place in ``order`` of the pick most
            similar to it, the earliest of equals; -1 for a picked token and for a NaN token.
        closeness: ``[B, N]``, the similarity to it; 0 where there is no owner.
    """
    squares = grid_squares(height, width, similarity.device)
    diameter = math.hypot(height, width)
    orders, counts, owners, closeness = [], [], [], []
    for image in range(similarity.shape[0]):
        state = _expand(
            similarity[image],
            squares,
            pivots[image, :budget].tolist(),
            budget,
            (spread, diameter),
            (threshold, step),
            chunk,
        )
        counts.append(len(state.order))
        if pad and len(state.order) < budget:
            for token in _rank(state, spread, diameter)[: budget - len(state.order)]:
                state.pick(token)
        orders.append(state.order + [-1] * (budget - len(state.order)))
        # A token left over is merged into its owner, which a NaN would spoil.
        alone = state.taken | state.best.isnan()
        owners.append(state.owner.masked_fill(alone, -1))
        closeness.append(state.best.masked_fill(alone, 0))
    batch, num_tokens, _ = similarity.shape
    whole = torch.empty(0, dtype=torch.int64, device=similarity.device)
    # Of an empty batch there is nothing to stack.
    return (
        whole.new_tensor(orders).view(batch, budget),
        whole.new_tensor(counts).view(batch),
        torch.stack(owners) if batch else whole.new_empty((0, num_tokens)),
        torch.stack(closeness) if batch else similarity.new_empty(0, num_tokens),
    )


def _expand(
    similarity: Tensor,
    squares: Tensor,
    pivots: list[int],
    budget: int,
    spread: tuple[float, float],
    thresholds: tuple[float, float],
    chunk: int,
) -> _State:
    """The expansion of one image, as far as it comes."""
    num_tokens, own = similarity.shape[0], similarity.diagonal()
    state = _State(
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
        ranking = _rank(state, *spread)
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


def _rank(state: _State, spread: float, diameter: float) -> list[int]:
    """The tokens left, least redundant first, NaN tokens after all others."""
    merit = nan_last(1 - state.redundancy(spread, diameter))
    order = merit.sort(descending=True, stable=True).indices
    is_nan = state.best[order].isnan()
    order = torch.cat([order[~is_nan], order[is_nan]])
    ranked: list[int] = order[~state.taken[order]].tolist()
    return ranked
