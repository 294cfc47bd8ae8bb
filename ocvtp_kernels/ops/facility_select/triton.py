"""Greedy facility location: first gains over the whole GPU, then one program an image.

The greedy is lazy. Coverage only grows, so a gain only falls, and an earlier gain is an upper
bound: only the token of the highest bound needs its gain computed again. If it stays highest, no
other token beats it or equals it with a lower id. That is exact in floating point too: every
operation of the sum is monotone and their order is fixed. The first gains are summed in another
order, so they are raised by more than rounding can change them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.triton_common.blocks import ceil_div
from ocvtp_kernels.triton_common.greedy import load_row
from ocvtp_kernels.triton_common.greedy_tiles import gain_tile, greedy_tile
from ocvtp_kernels.triton_common.launch import launch, unit_stride
from ocvtp_kernels.triton_common.packed_argmax import pack_argmax, unpack_token
from ocvtp_kernels.triton_common.programs import block_of_image

# In a sum of 4096 elements each passes at most 60 additions, with a relative error of 6e-8 each.
RAISE = 1.00001


@triton.jit
def gain_kernel(
    similarity, gains,
    num_tokens,
    image_stride, row_stride,
    factor,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """``factor`` times the sum of each row's positive elements: float32 ``[B, N]``."""
    image, token, mask_token = block_of_image(num_tokens, BLOCK_ROWS)
    row = similarity + image * image_stride + token.to(tl.int64)[:, None] * row_stride
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    for first in range(0, num_tokens, BLOCK_COLUMNS):
        column = first + tl.arange(0, BLOCK_COLUMNS)
        mask = mask_token[:, None] & (column < num_tokens)[None, :]
        value = tl.load(row + column[None, :], mask=mask, other=0.0).to(tl.float32)
        # A NaN stays in the sum.
        total += tl.where(value < 0.0, 0.0, value)
    tl.store(gains + image * num_tokens + token, tl.sum(total, axis=1) * factor, mask=mask_token)


@triton.jit(do_not_specialize=["budget"])
def facility_kernel(
    similarity, saliency, gains, order,
    num_tokens, budget,
    image_stride, row_stride, saliency_stride,
    BLOCK_TOKENS: tl.constexpr,
):  # fmt: skip
    """Order int64 ``[B, T]``.

    A bound is packed by `pack_argmax` with the id doubled, plus one while it is of an earlier step:
    the lowest bit of the packed bound is set once it is the token's current gain.
    """
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK_TOKENS)
    mask = token < num_tokens
    similarity += image * image_stride
    saliency += image * saliency_stride
    order += image * budget
    gain = tl.load(gains + image * num_tokens + token, mask=mask, other=0.0)
    gain *= tl.load(saliency + token, mask=mask, other=0.0).to(tl.float32)
    bounds = tl.where(mask, pack_argmax(gain, 2 * token + 1), -2)
    covered = tl.zeros([BLOCK_TOKENS], tl.float32)
    for step in range(budget):
        best = tl.max(bounds)
        while (best & 1) == 0:
            candidate = unpack_token(best) // 2
            row = load_row(similarity, candidate, row_stride, token, mask, 0.0)
            uncovered = row - covered
            uncovered = tl.where(
                mask & ((uncovered > 0.0) | (uncovered != uncovered)), uncovered, 0.0
            )
            new_gain = tl.sum(uncovered) * tl.load(saliency + candidate).to(tl.float32)
            bounds = tl.where(token == candidate, pack_argmax(new_gain, 2 * candidate), bounds)
            best = tl.max(bounds)
        pick = unpack_token(best) // 2
        tl.store(order + step, pick)
        row = load_row(similarity, pick, row_stride, token, mask, 0.0)
        # A row with a NaN is picked after all others, when every gain is NaN.
        covered = tl.where(row > covered, row, covered)
        bounds = tl.where(token == pick, -2, bounds & -2)


def facility_select(similarity: Tensor, saliency: Tensor, budget: int) -> Tensor:
    """`ocvtp::facility_select` in two launches."""
    similarity, saliency = unit_stride(similarity), unit_stride(saliency)
    batch, num_tokens, _ = similarity.shape
    order = torch.empty((batch, budget), dtype=torch.int64, device=similarity.device)
    gains = similarity.new_empty((batch, num_tokens), dtype=torch.float32)
    matrix = {
        "similarity": similarity,
        "gains": gains,
        "num_tokens": num_tokens,
        "image_stride": similarity.stride(0),
        "row_stride": similarity.stride(1),
    }
    walk = gain_tile(num_tokens)
    launch(
        gain_kernel,
        (batch * ceil_div(num_tokens, walk.block_rows),),
        {
            **matrix,
            "factor": RAISE,
            "BLOCK_ROWS": walk.block_rows,
            "BLOCK_COLUMNS": walk.block_columns,
        },
        num_warps=walk.num_warps,
    )
    tile = greedy_tile(num_tokens)
    launch(
        facility_kernel,
        (batch,),
        {
            **matrix,
            "saliency": saliency,
            "order": order,
            "budget": budget,
            "saliency_stride": saliency.stride(0),
            "BLOCK_TOKENS": tile.block_tokens,
        },
        num_warps=tile.num_warps,
    )
    return order
