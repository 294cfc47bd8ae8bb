"""Greedy facility location: first gains over the whole GPU, then one program an image.

The greedy is lazy. Coverage only grows, so a gain only falls, and one computed earlier is an upper
bound: only the token whose bound is highest needs its gain anew. Rounding keeps that exact, since
every operation of the sum is monotone and its order is always the same; where such a token stays
highest, no other can beat it, nor equal it with a lower id. The first gains are summed in another
order and are raised by more than that can make of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.ops.slot_argmax.triton import pack_pick, pick_token
from ocvtp_kernels.triton_common.greedy import load_row
from ocvtp_kernels.triton_common.greedy_tiles import gain_tile, greedy_tile
from ocvtp_kernels.triton_common.launch import launch, unit_stride
from ocvtp_kernels.triton_common.linear_tiles import ceil_div

# No sum of 4096 numbers here takes one through more than 60 additions, of 6e-8 each.
RAISE = 1.00001


@triton.jit
def gain_kernel(
    similarity,
    gains,
    num_tokens,
    image_stride,
    row_stride,
    raised,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """``raised`` times the sum of what is positive in each row: float32 ``[B, N]``."""
    blocks = tl.cdiv(num_tokens, ROWS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    token = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    live_token = token < num_tokens
    row = similarity + image * image_stride + token.to(tl.int64)[:, None] * row_stride
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, num_tokens, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        live = live_token[:, None] & (column < num_tokens)[None, :]
        value = tl.load(row + column[None, :], mask=live, other=0.0).to(tl.float32)
        # A NaN stays one.
        total += tl.where(value < 0.0, 0.0, value)
    tl.store(gains + image * num_tokens + token, tl.sum(total, axis=1) * raised, mask=live_token)


@triton.jit(do_not_specialize=["budget"])
def facility_kernel(
    similarity,
    saliency,
    gains,
    order,
    num_tokens,
    budget,
    image_stride,
    row_stride,
    saliency_stride,
    TOKENS: tl.constexpr,
):
    """Picks int64 ``[B, T]``.

    A bound travels as `pack_pick` packs it, its id doubled, plus one while it is of an earlier
    step: the lowest bit says whether it is the token's gain as it stands.
    """
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, TOKENS)
    live = token < num_tokens
    similarity += image * image_stride
    saliency += image * saliency_stride
    order += image * budget
    gain = tl.load(gains + image * num_tokens + token, mask=live, other=0.0)
    gain *= tl.load(saliency + token, mask=live, other=0.0).to(tl.float32)
    bounds = tl.where(live, pack_pick(gain, 2 * token + 1), -2)
    covered = tl.zeros([TOKENS], tl.float32)
    for step in range(budget):
        best = tl.max(bounds)
        while (best & 1) == 0:
            candidate = pick_token(best) // 2
            row = load_row(similarity, candidate, row_stride, token, live, 0.0)
            beyond = row - covered
            beyond = tl.where(live & ((beyond > 0.0) | (beyond != beyond)), beyond, 0.0)
            now = tl.sum(beyond) * tl.load(saliency + candidate).to(tl.float32)
            bounds = tl.where(token == candidate, pack_pick(now, 2 * candidate), bounds)
            best = tl.max(bounds)
        pick = pick_token(best) // 2
        tl.store(order + step, pick)
        row = load_row(similarity, pick, row_stride, token, live, 0.0)
        # A row with a NaN is picked after all others, when no gain is a number any more.
        covered = tl.where(row > covered, row, covered)
        bounds = tl.where(token == pick, -2, bounds & -2)


def facility_select(similarity: Tensor, saliency: Tensor, budget: int) -> Tensor:
    """`ocvtp_kernels.ops.greedy.facility_select` in two launches."""
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
        (batch * ceil_div(num_tokens, walk.rows),),
        {**matrix, "raised": RAISE, "ROWS": walk.rows, "COLUMNS": walk.columns},
        num_warps=walk.warps,
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
            "TOKENS": tile.tokens,
        },
        num_warps=tile.warps,
    )
    return order
