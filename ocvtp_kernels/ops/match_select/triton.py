"""Rounds of bipartite matching, one program an image and all rounds in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.triton_common.blocks import ceil_div
from ocvtp_kernels.triton_common.greedy import nan_last
from ocvtp_kernels.triton_common.greedy_tiles import match_tile
from ocvtp_kernels.triton_common.launch import launch, unit_stride
from ocvtp_kernels.triton_common.packed_argmax import pack_argmax


@triton.jit
def max_similarity_of(
    similarity, current, position, mask_position, num_b,
    row_stride,
    BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """The largest similarity of these tokens of side a to any token of side b."""
    token_a = tl.load(current + 2 * position, mask=mask_position, other=0)
    row = similarity + token_a.to(tl.int64)[:, None] * row_stride
    best = tl.full([position.shape[0], BLOCK_COLUMNS], float("-inf"), tl.float32)
    for first in range(0, num_b, BLOCK_COLUMNS):
        other = first + tl.arange(0, BLOCK_COLUMNS)
        mask_other = other < num_b
        token_b = tl.load(current + 2 * other + 1, mask=mask_other, other=0)
        mask = mask_position[:, None] & mask_other[None, :]
        value = tl.load(row + token_b[None, :], mask=mask, other=float("-inf")).to(tl.float32)
        best = tl.maximum(best, nan_last(value))
    return tl.max(best, axis=1)


@triton.jit(do_not_specialize=["num_ranked", "budget", "drop"])
def match_kernel(
    similarity, ranked, lists, max_similarity, order,
    num_ranked, budget, drop,
    image_stride, row_stride,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Remaining tokens, int64 ``[B, T]``.

    ``lists`` int32 ``[B, 2, R]`` holds a round's list and the next, ``max_similarity`` int64
    ``[B, ceil(R / 2)]`` the round's maxima, packed with their positions. All differ, so a token's
    rank is the number of larger ones.
    """
    image = tl.program_id(0).to(tl.int64)
    similarity += image * image_stride
    ranked += image * num_ranked
    lists += image * 2 * num_ranked
    max_similarity += image * tl.cdiv(num_ranked, 2)
    order += image * budget
    for first in range(0, num_ranked, BLOCK_COLUMNS):
        position = first + tl.arange(0, BLOCK_COLUMNS)
        mask = position < num_ranked
        tl.store(lists + position, tl.load(ranked + position, mask=mask).to(tl.int32), mask=mask)
    tl.debug_barrier()
    remaining = num_ranked
    here = 0
    while remaining > budget:
        current, following = lists + here * num_ranked, lists + (1 - here) * num_ranked
        num_a, num_b = (remaining + 1) // 2, remaining // 2
        num_dropped = tl.minimum(tl.minimum(drop, remaining - budget), num_a)
        for first in range(0, num_a, BLOCK_ROWS):
            position = first + tl.arange(0, BLOCK_ROWS)
            mask_position = position < num_a
            best = max_similarity_of(
                similarity, current, position, mask_position, num_b, row_stride, BLOCK_COLUMNS
            )
            tl.store(max_similarity + position, pack_argmax(best, position), mask=mask_position)
        tl.debug_barrier()
        for first in range(0, num_a, BLOCK_ROWS):
            position = first + tl.arange(0, BLOCK_ROWS)
            mask_position = position < num_a
            own = tl.load(max_similarity + position, mask=mask_position, other=0)
            ahead = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.int32)
            for first_other in range(0, num_a, BLOCK_COLUMNS):
                other = first_other + tl.arange(0, BLOCK_COLUMNS)
                other_value = tl.load(max_similarity + other, mask=other < num_a, other=-1)
                ahead += (other_value[None, :] > own[:, None]).to(tl.int32)
            rank = tl.sum(ahead, axis=1)
            token = tl.load(current + 2 * position, mask=mask_position, other=0)
            tl.store(
                following + rank - num_dropped, token, mask=mask_position & (rank >= num_dropped)
            )
        for first in range(0, num_b, BLOCK_COLUMNS):
            position = first + tl.arange(0, BLOCK_COLUMNS)
            mask = position < num_b
            token = tl.load(current + 2 * position + 1, mask=mask, other=0)
            tl.store(following + num_a - num_dropped + position, token, mask=mask)
        tl.debug_barrier()
        remaining -= num_dropped
        here = 1 - here
    for first in range(0, budget, BLOCK_COLUMNS):
        position = first + tl.arange(0, BLOCK_COLUMNS)
        mask = position < budget
        token = tl.load(lists + here * num_ranked + position, mask=mask, other=0)
        tl.store(order + position, token.to(tl.int64), mask=mask)


def match_select(similarity: Tensor, ranked: Tensor, budget: int, drop: int = 8) -> Tensor:
    """`ocvtp::match_select` in one launch."""
    similarity, ranked = unit_stride(similarity), ranked.contiguous()
    batch, num_ranked = ranked.shape
    order = torch.empty((batch, budget), dtype=torch.int64, device=similarity.device)
    tile = match_tile()
    launch(
        match_kernel,
        (batch,),
        {
            "similarity": similarity,
            "ranked": ranked,
            "lists": order.new_empty((batch, 2, num_ranked), dtype=torch.int32),
            "max_similarity": order.new_empty((batch, ceil_div(num_ranked, 2))),
            "order": order,
            "num_ranked": num_ranked,
            "budget": budget,
            "drop": min(drop, num_ranked),
            "image_stride": similarity.stride(0),
            "row_stride": similarity.stride(1),
            "BLOCK_ROWS": tile.block_rows,
            "BLOCK_COLUMNS": tile.block_columns,
        },
        num_warps=tile.num_warps,
    )
    return order
