"""Weighted sums of the tokens of each owner: a program an owner and block of channels."""

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
    tokens, assignment, weight, sums, mass,
    num_tokens, num_owners, width,
    token_image_stride, token_row_stride, assignment_stride, weight_stride,
    BLOCK_TOKENS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums float32 ``[B, T, C]`` and mass ``[B, T]``.

    A program reads the whole assignment and goes from one of its tokens to the next: the sum runs
    in the order of ids for every tile, and tokens of other owners are never read.
    """
    blocks = tl.maximum(tl.cdiv(width, BLOCK_COLUMNS), 1)
    block = tl.program_id(0) % blocks
    offs_owner = (tl.program_id(0) // blocks).to(tl.int64)
    image = offs_owner // num_owners
    owner = offs_owner % num_owners
    column = block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask_column = column < width
    tokens += image * token_image_stride + column
    assignment += image * assignment_stride
    weight += image * weight_stride
    total = tl.zeros([BLOCK_COLUMNS], tl.float32)
    group = tl.zeros([BLOCK_COLUMNS], tl.float32)
    total_weight = 0.0
    group_weight = 0.0
    count = 0
    for first in range(0, num_tokens, BLOCK_TOKENS):
        token = first + tl.arange(0, BLOCK_TOKENS)
        assigned = tl.load(assignment + token, mask=token < num_tokens, other=-1)
        waiting = tl.where(assigned == owner, token, num_tokens)
        next_token = tl.min(waiting)
        while next_token < num_tokens:
            row = next_token.to(tl.int64) * token_row_stride
            value = tl.load(tokens + row, mask=mask_column, other=0.0).to(tl.float32)
            token_weight = tl.load(weight + next_token).to(tl.float32)
            group += token_weight * value
            group_weight += token_weight
            count += 1
            # Sums of sixteen are added up: one long sum would round small terms away.
            full = count % 16 == 0
            total += tl.where(full, group, 0.0)
            group = tl.where(full, 0.0, group)
            total_weight += tl.where(full, group_weight, 0.0)
            group_weight = tl.where(full, 0.0, group_weight)
            next_token = tl.min(tl.where(waiting > next_token, waiting, num_tokens))
    tl.store(sums + offs_owner * width + column, total + group, mask=mask_column)
    if block == 0:
        tl.store(mass + offs_owner, total_weight + group_weight)


def scatter_merge(
    tokens: Tensor, assignment: Tensor, weight: Tensor, num_owners: int
) -> tuple[Tensor, Tensor]:
    """`ocvtp::scatter_merge` in one launch."""
    tokens, assignment, weight = (unit_stride(t) for t in (tokens, assignment, weight))
    batch, num_tokens, width = tokens.shape
    tile = merge_tile(num_tokens, max(width, 1))
    sums = torch.empty((batch, num_owners, width), dtype=torch.float32, device=tokens.device)
    mass = sums.new_empty((batch, num_owners))
    launch(
        scatter_kernel,
        (batch * num_owners * max(ceil_div(width, tile.block_columns), 1),),
        {
            "tokens": tokens,
            "assignment": assignment,
            "weight": weight,
            "sums": sums,
            "mass": mass,
            "num_tokens": num_tokens,
            "num_owners": num_owners,
            "width": width,
            "token_image_stride": tokens.stride(0),
            "token_row_stride": tokens.stride(1),
            "assignment_stride": assignment.stride(0),
            "weight_stride": weight.stride(0),
            "BLOCK_TOKENS": tile.block_rows,
            "BLOCK_COLUMNS": tile.block_columns,
        },
        num_warps=tile.num_warps,
    )
    return sums, mass
