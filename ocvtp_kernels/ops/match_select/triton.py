"""Rounds of bipartite matching, one program an image and all rounds in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.ops.slot_argmax.triton import pack_pick
from ocvtp_kernels.triton_common.blocks import ceil_div
from ocvtp_kernels.triton_common.greedy import nan_last
from ocvtp_kernels.triton_common.greedy_tiles import match_tile
from ocvtp_kernels.triton_common.launch import launch, unit_stride


@triton.jit
def likeness_of(
    similarity,
    now,
    place,
    live_place,
    num_b,
    row_stride,
    COLUMNS: tl.constexpr,
):
    """What each of these places of a has as its largest similarity to any token of b."""
    mine = tl.load(now + 2 * place, mask=live_place, other=0)
    row = similarity + mine.to(tl.int64)[:, None] * row_stride
    best = tl.full([place.shape[0], COLUMNS], float("-inf"), tl.float32)
    for first in range(0, num_b, COLUMNS):
        other = first + tl.arange(0, COLUMNS)
        live_other = other < num_b
        theirs = tl.load(now + 2 * other + 1, mask=live_other, other=0)
        live = live_place[:, None] & live_other[None, :]
        value = tl.load(row + theirs[None, :], mask=live, other=float("-inf")).to(tl.float32)
        best = tl.maximum(best, nan_last(value))
    return tl.max(best, axis=1)


@triton.jit(do_not_specialize=["num_ranked", "budget", "drop"])
def match_kernel(
    similarity,
    ranked,
    lists,
    likeness,
    order,
    num_ranked,
    budget,
    drop,
    image_stride,
    row_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Tokens left, int64 ``[B, T]``.

    ``lists`` int32 ``[B, 2, R]`` holds the list of a round and the next, ``likeness`` int64
    ``[B, ceil(R / 2)]`` the round's maxima, packed with their places. All differ, so a token's
    rank among them is a count.
    """
    image = tl.program_id(0).to(tl.int64)
    similarity += image * image_stride
    ranked += image * num_ranked
    lists += image * 2 * num_ranked
    likeness += image * tl.cdiv(num_ranked, 2)
    order += image * budget
    for first in range(0, num_ranked, COLUMNS):
        place = first + tl.arange(0, COLUMNS)
        live = place < num_ranked
        tl.store(lists + place, tl.load(ranked + place, mask=live).to(tl.int32), mask=live)
    tl.debug_barrier()
    left = num_ranked
    here = 0
    while left > budget:
        now, then = lists + here * num_ranked, lists + (1 - here) * num_ranked
        num_a, num_b = (left + 1) // 2, left // 2
        gone = tl.minimum(tl.minimum(drop, left - budget), num_a)
        for first in range(0, num_a, ROWS):
            place = first + tl.arange(0, ROWS)
            live_place = place < num_a
            best = likeness_of(similarity, now, place, live_place, num_b, row_stride, COLUMNS)
            tl.store(likeness + place, pack_pick(best, place), mask=live_place)
        tl.debug_barrier()
        for first in range(0, num_a, ROWS):
            place = first + tl.arange(0, ROWS)
            live_place = place < num_a
            mine = tl.load(likeness + place, mask=live_place, other=0)
            ahead = tl.zeros([ROWS, COLUMNS], tl.int32)
            for first_rival in range(0, num_a, COLUMNS):
                rival = first_rival + tl.arange(0, COLUMNS)
                theirs = tl.load(likeness + rival, mask=rival < num_a, other=-1)
                ahead += (theirs[None, :] > mine[:, None]).to(tl.int32)
            rank = tl.sum(ahead, axis=1)
            token = tl.load(now + 2 * place, mask=live_place, other=0)
            tl.store(then + rank - gone, token, mask=live_place & (rank >= gone))
        for first in range(0, num_b, COLUMNS):
            place = first + tl.arange(0, COLUMNS)
            live = place < num_b
            token = tl.load(now + 2 * place + 1, mask=live, other=0)
            tl.store(then + num_a - gone + place, token, mask=live)
        tl.debug_barrier()
        left -= gone
        here = 1 - here
    for first in range(0, budget, COLUMNS):
        place = first + tl.arange(0, COLUMNS)
        live = place < budget
        token = tl.load(lists + here * num_ranked + place, mask=live, other=0)
        tl.store(order + place, token.to(tl.int64), mask=live)


def match_select(similarity: Tensor, ranked: Tensor, budget: int, drop: int = 8) -> Tensor:
    """`ocvtp_kernels.ops.greedy.match_select` in one launch."""
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
            "likeness": order.new_empty((batch, ceil_div(num_ranked, 2))),
            "order": order,
            "num_ranked": num_ranked,
            "budget": budget,
            "drop": min(drop, num_ranked),
            "image_stride": similarity.stride(0),
            "row_stride": similarity.stride(1),
            "ROWS": tile.rows,
            "COLUMNS": tile.columns,
        },
        num_warps=tile.warps,
    )
    return order
