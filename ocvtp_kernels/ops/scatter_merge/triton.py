"""Weighted sums of tokens by owner: a program an owner and block of channels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.triton_common.blocks import ceil_div
from ocvtp_kernels.triton_common.greedy_tiles import merge_tile
from ocvtp_kernels.triton_common.launch import launch, unit_stride


@triton.jit
def scatter_kernel(
    tokens,
    owner,
    weight,
    sums,
    mass,
    num_tokens,
    num_owners,
    width,
    token_image_stride,
    token_row_stride,
    owner_stride,
    weight_stride,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sums float32 ``[B, T, C]`` and mass ``[B, T]``.

    A program reads all owners and goes from one of its tokens to the next, so that the sum runs in
    the order of ids whatever the tile, and tokens of others are never read.
    """
    blocks = tl.maximum(tl.cdiv(width, COLUMNS), 1)
    block = tl.program_id(0) % blocks
    place = (tl.program_id(0) // blocks).to(tl.int64)
    image = place // num_owners
    mine = place % num_owners
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    live_column = column < width
    tokens += image * token_image_stride + column
    owner += image * owner_stride
    weight += image * weight_stride
    total = tl.zeros([COLUMNS], tl.float32)
    group = tl.zeros([COLUMNS], tl.float32)
    total_share = 0.0
    group_share = 0.0
    number = 0
    for first in range(0, num_tokens, TOKENS):
        token = first + tl.arange(0, TOKENS)
        theirs = tl.load(owner + token, mask=token < num_tokens, other=-1)
        waiting = tl.where(theirs == mine, token, num_tokens)
        following = tl.min(waiting)
        while following < num_tokens:
            row = following.to(tl.int64) * token_row_stride
            value = tl.load(tokens + row, mask=live_column, other=0.0).to(tl.float32)
            part = tl.load(weight + following).to(tl.float32)
            group += part * value
            group_share += part
            number += 1
            # Sixteen at a time: a long sum into one number loses the small ones.
            full = number % 16 == 0
            total += tl.where(full, group, 0.0)
            group = tl.where(full, 0.0, group)
            total_share += tl.where(full, group_share, 0.0)
            group_share = tl.where(full, 0.0, group_share)
            following = tl.min(tl.where(waiting > following, waiting, num_tokens))
    tl.store(sums + place * width + column, total + group, mask=live_column)
    if block == 0:
        tl.store(mass + place, total_share + group_share)


def scatter_merge(
    tokens: Tensor, owner: Tensor, weight: Tensor, num_owners: int
) -> tuple[Tensor, Tensor]:
    """`ocvtp_kernels.ops.greedy.scatter_merge` in one launch."""
    tokens, owner, weight = (unit_stride(t) for t in (tokens, owner, weight))
    batch, num_tokens, width = tokens.shape
    tile = merge_tile(num_tokens, max(width, 1))
    sums = torch.empty((batch, num_owners, width), dtype=torch.float32, device=tokens.device)
    mass = sums.new_empty((batch, num_owners))
    launch(
        scatter_kernel,
        (batch * num_owners * max(ceil_div(width, tile.columns), 1),),
        {
            "tokens": tokens,
            "owner": owner,
            "weight": weight,
            "sums": sums,
            "mass": mass,
            "num_tokens": num_tokens,
            "num_owners": num_owners,
            "width": width,
            "token_image_stride": tokens.stride(0),
            "token_row_stride": tokens.stride(1),
            "owner_stride": owner.stride(0),
            "weight_stride": weight.stride(0),
            "TOKENS": tile.rows,
            "COLUMNS": tile.columns,
        },
        num_warps=tile.warps,
    )
    return sums, mass
