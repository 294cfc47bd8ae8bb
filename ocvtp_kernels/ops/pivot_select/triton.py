"""Farthest-point greedy over points: a launch a pick, each over blocks of points.

The pick of a step is known to the next launch alone, which takes it from the best of every block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.ops.slot_argmax.triton import pick_token
from ocvtp_kernels.triton_common.blocks import ceil_div, power_of_two
from ocvtp_kernels.triton_common.greedy import best_token, nan_last
from ocvtp_kernels.triton_common.greedy_tiles import pivot_tile
from ocvtp_kernels.triton_common.launch import launch, unit_stride


@triton.jit
def best_block(best, blocks, BLOCKS: tl.constexpr):
    """The id that the best of an image's blocks packs: int64."""
    block = tl.arange(0, BLOCKS)
    return pick_token(tl.max(tl.load(best + block, mask=block < blocks, other=-1)))


@triton.jit(do_not_specialize=["step", "steps"])
def pivot_kernel(
    points,
    running,
    best,
    num_tokens,
    depth,
    step,
    steps,
    image_stride,
    row_stride,
    NORM: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Each block's best token of step ``step``: packed, int64 ``[B, T, blocks]``.

    With NORM a token's score is its L1 norm; else its squared distance to the nearest pick, which
    ``running`` float32 ``[B, N]`` keeps from step to step. NaN there says that it is picked.
    """
    blocks = tl.cdiv(num_tokens, ROWS)
    block = tl.program_id(0) % blocks
    image = (tl.program_id(0) // blocks).to(tl.int64)
    token = block * ROWS + tl.arange(0, ROWS)
    live_token = token < num_tokens
    points += image * image_stride
    running += image * num_tokens + token
    best += (image * steps + step) * blocks
    row = points + token.to(tl.int64)[:, None] * row_stride
    if not NORM:
        pick = best_block(best - blocks, blocks, BLOCKS)
        pivot = points + pick * row_stride
    total = tl.zeros([ROWS, DEPTH], tl.float32)
    for start in range(0, depth, DEPTH):
        channel = start + tl.arange(0, DEPTH)
        live_channel = channel < depth
        live = live_token[:, None] & live_channel[None, :]
        value = tl.load(row + channel[None, :], mask=live, other=0.0).to(tl.float32)
        if NORM:
            total += tl.abs(value)
        else:
            other = tl.load(pivot + channel, mask=live_channel, other=0.0).to(tl.float32)
            offset = tl.where(live, value - other[None, :], 0.0)
            total += offset * offset
    score = tl.sum(total, axis=1)
    free = live_token
    if NORM:
        tl.store(running, tl.full([ROWS], float("inf"), tl.float32), mask=live_token)
    else:
        before = tl.load(running, mask=live_token, other=0.0)
        free = free & (before == before) & (token != pick)
        score = tl.minimum(tl.where(free, before, 0.0), nan_last(score))
        tl.store(running, tl.where(free, score, float("nan")), mask=live_token)
    tl.store(best + block, best_token(score, token, free))


@triton.jit
def pivots_kernel(best, order, blocks, BLOCKS: tl.constexpr):
    """Picks int64 ``[B, T]`` from each step's best of every block, one program a pick."""
    place = tl.program_id(0).to(tl.int64)
    tl.store(order + place, best_block(best + place * blocks, blocks, BLOCKS))


def pivot_select(points: Tensor, budget: int) -> Tensor:
    """`ocvtp_kernels.ops.greedy.pivot_select` in ``budget + 1`` launches."""
    points = unit_stride(points)
    batch, num_tokens, depth = points.shape
    tile = pivot_tile(num_tokens, max(depth, 1))
    blocks = ceil_div(num_tokens, tile.rows)
    order = torch.empty((batch, budget), dtype=torch.int64, device=points.device)
    best = order.new_empty((batch, budget, blocks))
    running = points.new_empty((batch, num_tokens), dtype=torch.float32)
    for step in range(budget):
        launch(
            pivot_kernel,
            (batch * blocks,),
            {
                "points": points,
                "running": running,
                "best": best,
                "num_tokens": num_tokens,
                "depth": depth,
                "step": step,
                "steps": budget,
                "image_stride": points.stride(0),
                "row_stride": points.stride(1),
                "NORM": step == 0,
                "ROWS": tile.rows,
                "DEPTH": tile.columns,
                "BLOCKS": power_of_two(blocks),
            },
            num_warps=tile.warps,
        )
    launch(
        pivots_kernel,
        (batch * budget,),
        {"best": best, "order": order, "blocks": blocks, "BLOCKS": power_of_two(blocks)},
        num_warps=1,
    )
    return order
