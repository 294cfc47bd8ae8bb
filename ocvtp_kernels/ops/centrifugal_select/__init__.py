"""VLM-Pruner's centrifugal expansion: from pivots outwards, the least redundant tokens first."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.dtypes import acc_dtype
from ocvtp_kernels.ops.centrifugal_select.reference import expand, grid_squares, rank
from ocvtp_kernels.ops.greedy import (
    check_ids,
    check_square,
    native_kernel,
    require_ids,
    too_many_tokens,
)
from ocvtp_kernels.ops.registry import Upcast, op


def _check(
    similarity: Tensor,
    pivots: Tensor,
    height: int,
    width: int,
    budget: int,
    spread: float,
    step: float,
    chunk: int,
) -> None:
    check_square("similarity", similarity)
    check_ids("pivots", pivots, "B, P", "similarity", similarity)
    checks.require_nonempty("pivots", pivots, 1, "pivot")
    if height < 1 or width < 1 or height * width != similarity.shape[1]:
        raise ValueError(
            f"height, width: expected a grid of {similarity.shape[1]} tokens, got {height}, {width}"
        )
    checks.require_budget(budget, similarity.shape[1])
    for name, value in (("spread", spread), ("step", step)):
        checks.require_between(name, value, 0, math.inf)
    checks.require_at_least("chunk", chunk, 1)


def _fake(similarity: Tensor, pivots: Tensor, budget: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, num_tokens, _n = similarity.shape
    return (
        pivots.new_empty((batch, budget)),
        pivots.new_empty((batch,)),
        pivots.new_empty((batch, num_tokens)),
        similarity.new_empty((batch, num_tokens), dtype=acc_dtype(similarity.dtype)),
    )


@op(
    outputs=("order", "count", "assignment", "max_similarity"),
    check=_check,
    values=lambda similarity, pivots: require_ids("pivots", pivots, similarity.shape[1]),
    fake=_fake,
    cpu=native_kernel("centrifugal_select"),
    triton="triton",
    unsupported={"triton": lambda similarity: too_many_tokens(similarity)},
    reference=Upcast(),
)
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
        similarity: ``[B, N, N]``, cosine, any floating dtype.
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
        assignment: int64 ``[B, N]``: of a token left over, the index in ``order`` of the pick most
            similar to it, the earliest of equals; -1 for a picked token and for a NaN token.
        max_similarity: ``[B, N]``, the similarity to it in float32 or wider; 0 where there is no
            assignment.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit, or a number is out
            of its range; the message names it. Ids are looked at on a CPU alone.
    """
    squares = grid_squares(height, width, similarity.device)
    diameter = math.hypot(height, width)
    orders, counts, assignments, similarities = [], [], [], []
    for image in range(similarity.shape[0]):
        state = expand(
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
            for token in rank(state, spread, diameter)[: budget - len(state.order)]:
                state.pick(token)
        orders.append(state.order + [-1] * (budget - len(state.order)))
        # A token left over is merged into its pick, which a NaN would spoil.
        alone = state.taken | state.best.isnan()
        assignments.append(state.assignment.masked_fill(alone, -1))
        similarities.append(state.best.masked_fill(alone, 0))
    batch, num_tokens, _ = similarity.shape
    ids = torch.empty(0, dtype=torch.int64, device=similarity.device)
    # Of an empty batch there is nothing to stack.
    return (
        ids.new_tensor(orders).view(batch, budget),
        ids.new_tensor(counts).view(batch),
        torch.stack(assignments) if batch else ids.new_empty((0, num_tokens)),
        torch.stack(similarities) if batch else similarity.new_empty(0, num_tokens),
    )
