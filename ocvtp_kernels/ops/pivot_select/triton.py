"""Farthest-point greedy over points: one launch a token, over all blocks of points.

A launch finds the token that the one before picked, as the best of all its blocks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.triton_common.blocks import ceil_div, power_of_two
from ocvtp_kernels.triton_common.greedy import best_token, nan_last
from ocvtp_kernels.triton_common.greedy_tiles import pivot_tile
from ocvtp_kernels.triton_common.launch import launch, unit_stride
from ocvtp_kernels.triton_common.packed_argmax import unpack_token


@triton.jit
def best_block(best, num_blocks, BLOCK_PARTIALS: tl.constexpr):
    """The id of the best over an image's blocks, int64."""
    block = tl.arange(0, BLOCK_PARTIALS)
    return unpack_token(tl.max(tl.load(best + block, mask=block < num_blocks, other=-1)))


@triton.jit(do_not_specialize=["step", "budget"])
def pivot_kernel(
    points, running, best,
    num_tokens, depth, step, budget,
    image_stride, row_stride,
    NORM: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
):  # fmt: skip
    """Each block's best token of step ``step``: packed, int64 ``[B, T, blocks]``.

    With NORM a token's score is its L1 norm; else its squared distance to the nearest pick, which
    ``running`` float32 ``[B, N]`` keeps from step to step. NaN there marks a picked token.
    """
    num_blocks = tl.cdiv(num_tokens, BLOCK_ROWS)
    block = tl.program_id(0) % num_blocks
    image = (tl.program_id(0) // num_blocks).to(tl.int64)
    token = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    mask_token = token < num_tokens
    points += image * image_stride
    running += image * num_tokens + token
    best += (image * budget + step) * num_blocks
    row = points + token.to(tl.int64)[:, None] * row_stride
    if not NORM:
        pick = best_block(best - num_blocks, num_blocks, BLOCK_PARTIALS)
        pivot = points + pick * row_stride
    total = tl.zeros([BLOCK_ROWS, BLOCK_K], tl.float32)
    for start in range(0, depth, BLOCK_K):
        channel = start + tl.arange(0, BLOCK_K)
        mask_channel = channel < depth
        mask = mask_token[:, None] & mask_channel[None, :]
        value = tl.load(row + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        if NORM:
            total += tl.abs(value)
        else:
            other = tl.load(pivot + channel, mask=mask_channel, other=0.0).to(tl.float32)
            offset = tl.where(mask, value - other[None, :], 0.0)
            total += offset * offset
    score = tl.sum(total, axis=1)
    free = mask_token
    if NORM:
        tl.store(running, tl.full([BLOCK_ROWS], float("inf"), tl.float32), mask=mask_token)
    else:
        before = tl.load(running, mask=mask_token, other=0.0)
        free = free & (before == before) & (token != pick)
        score = tl.minimum(tl.where(free, before, 0.0), nan_last(score))
        tl.store(running, tl.where(free, score, float("nan")), mask=mask_token)
    tl.store(best + block, best_token(score, token, free))


@triton.jit
def pivots_kernel(best, order, num_blocks, BLOCK_PARTIALS: tl.constexpr):
    """Order int64 ``[B, T]`` from each step's best of every block, one program a step."""
    offs = tl.program_id(0).to(tl.int64)
    tl.store(order + offs, best_block(best + offs * num_blocks, num_blocks, BLOCK_PARTIALS))


def pivot_select(points: Tensor, budget: int) -> Tensor:
    """`ocvtp::pivot_select` in ``budget + 1`` launches."""
    points = unit_stride(points)
    batch, num_tokens, depth = points.shape
    tile = pivot_tile(num_tokens, max(depth, 1))
    num_blocks = ceil_div(num_tokens, tile.block_rows)
    order = torch.empty((batch, budget), dtype=torch.int64, device=points.device)
    best = order.new_empty((batch, budget, num_blocks))
    running = points.new_empty((batch, num_tokens), dtype=torch.float32)
    for step in range(budget):
        launch(
            pivot_kernel,
            (batch * num_blocks,),
            {
                "points": points,
                "running": running,
                "best": best,
                "num_tokens": num_tokens,
                "depth": depth,
                "step": step,
                "budget": budget,
                "image_stride": points.stride(0),
                "row_stride": points.stride(1),
                "NORM": step == 0,
                "BLOCK_ROWS": tile.block_rows,
                "BLOCK_K": tile.block_columns,
                "BLOCK_PARTIALS": power_of_two(num_blocks),
            },
            num_warps=tile.num_warps,
        )
    launch(
        pivots_kernel,
        (batch * budget,),
        {
            "best": best,
            "order": order,
            "num_blocks": num_blocks,
            "BLOCK_PARTIALS": power_of_two(num_blocks),
        },
        num_warps=1,
    )
    return order
