"""Each slot's mean of the final tokens assigned to it, weighted by their attention.

The first kernel stores each token's slot and its attention there; the second makes the weights of a
block of slots from them and sums over the tokens, block by block in order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.ops.slot_argmax.triton import args_of
from ocvtp_kernels.ops.slot_attention.tiles import BLOCK, SlotAttentionTile, slots_per_tile
from ocvtp_kernels.ops.slot_attention.triton.logits import (
    clamp_index,
    join_softmax_stats,
    logits_tile,
    softmax_stats_of,
)
from ocvtp_kernels.triton_common.blocks import ceil_div, power_of_two
from ocvtp_kernels.triton_common.launch import dot_precision, launch, unit_stride
from ocvtp_kernels.triton_common.programs import block_of_image


@triton.jit
def assignment_kernel(
    q, k, slot_constant, slot_mask, assignment, attention,
    num_slots, num_tokens, depth, scale,
    q_image_stride, q_row_stride, k_image_stride, k_row_stride,
    CONSTANT: tl.constexpr, MASK: tl.constexpr, BLOCK_SLOTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Each token's slot of largest attention int32 and that attention float32, both ``[B, N]``.

    Ties go to the lowest slot; so does a token whose softmax, and so its attention, is NaN.
    """
    image, token, mask_token = block_of_image(num_tokens, BLOCK_TOKENS)
    k_row = k + image * k_image_stride + clamp_index(token, num_tokens) * k_row_stride
    row_max = tl.full([BLOCK_TOKENS], float("-inf"), tl.float32)
    rest_sum = tl.zeros([BLOCK_TOKENS], tl.float32)
    assigned = tl.zeros([BLOCK_TOKENS], tl.int32)
    for first_slot in range(0, num_slots, BLOCK_SLOTS):
        slot = first_slot + tl.arange(0, BLOCK_SLOTS)
        offs_slot = image * num_slots + slot
        q_row = q + image * q_image_stride + clamp_index(slot, num_slots) * q_row_stride
        masks = (slot < num_slots, mask_token)
        terms = (slot_constant + offs_slot, slot_mask + offs_slot)
        logits = logits_tile(
            (q_row, k_row), masks, terms, depth, scale, CONSTANT, MASK, BLOCK_K, EVEN_K, PRECISION
        )
        block_max, block_rest = softmax_stats_of(logits)
        block_best = tl.min(
            tl.where(logits == block_max[None, :], slot[:, None], num_slots), axis=0
        )
        row_max, rest_sum, is_larger = join_softmax_stats(row_max, rest_sum, block_max, block_rest)
        assigned = tl.where(is_larger, block_best, assigned)
    # row_max - row_max is 0, or NaN where the largest logit is infinite, as the softmax is then.
    attn = tl.div_rn(tl.full([BLOCK_TOKENS], 1.0, tl.float32), 1.0 + rest_sum) + (row_max - row_max)
    assigned = tl.where(attn != attn, 0, assigned)
    tl.store(assignment + image * num_tokens + token, assigned, mask=mask_token)
    tl.store(attention + image * num_tokens + token, attn, mask=mask_token)


@triton.jit
def merge_kernel(
    final_tokens, assignment, attention, merged, mass,
    num_slots, num_tokens, width,
    final_image_stride, final_row_stride,
    BLOCK_SLOTS: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Merged ``[B, K, C]`` and mass ``[B, K]``, the sum of the attention of a slot's tokens.

    A program takes one image, one block of slots and one block of channels.
    """
    channel_blocks = tl.cdiv(width, BLOCK_D)
    slot_blocks = tl.cdiv(num_slots, BLOCK_SLOTS)
    channel_block = tl.program_id(0) % channel_blocks
    slot_block = (tl.program_id(0) // channel_blocks) % slot_blocks
    image = (tl.program_id(0) // (channel_blocks * slot_blocks)).to(tl.int64)
    slot = slot_block * BLOCK_SLOTS + tl.arange(0, BLOCK_SLOTS)
    mask_slot = slot < num_slots
    channel = channel_block * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_channel = channel < width
    total = tl.zeros([BLOCK_SLOTS, BLOCK_D], tl.float32)
    rounded_mass = tl.zeros([BLOCK_SLOTS], tl.float32)
    total_mass = tl.zeros([BLOCK_SLOTS], tl.float32)
    for first_token in range(0, num_tokens, BLOCK_TOKENS):
        token = first_token + tl.arange(0, BLOCK_TOKENS)
        mask_token = token < num_tokens
        assigned = tl.load(assignment + image * num_tokens + token, mask=mask_token, other=-1)
        attn = tl.load(attention + image * num_tokens + token, mask=mask_token, other=0.0)
        weight = tl.where(assigned[None, :] == slot[:, None], attn[None, :], 0.0)
        rows = tl.load(
            final_tokens
            + image * final_image_stride
            + token.to(tl.int64)[:, None] * final_row_stride
            + channel[None, :],
            mask=mask_token[:, None] & mask_channel[None, :],
            other=0.0,
        )
        rounded = weight.to(rows.dtype)
        total_mass += tl.sum(weight, axis=1)
        rounded_mass += tl.sum(rounded.to(tl.float32), axis=1)
        total = tl.dot(rounded, rows, total, input_precision=PRECISION)
    # Divided by the rounded weights it is a mean: of a single token, that token.
    mean = tl.div_rn(total, tl.where(rounded_mass == 0.0, 1.0, rounded_mass)[:, None])
    offs_slot = image * num_slots + slot
    tl.store(
        merged + offs_slot[:, None] * width + channel[None, :],
        mean.to(merged.dtype.element_ty),
        mask=mask_slot[:, None] & mask_channel[None, :],
    )
    if channel_block == 0:
        tl.store(mass + offs_slot, total_mass.to(mass.dtype.element_ty), mask=mask_slot)


class MergeTile(NamedTuple):
    """One program's slots, its step along the tokens, and its channels of the final tokens."""

    block_slots: int
    block_tokens: int
    block_d: int
    num_warps: int
    num_stages: int


def assignment_tile(dtype: torch.dtype) -> SlotAttentionTile:
    """The tile of the pass over all slots, block by block; it has no channels of values."""
    if dtype == torch.float32:
        return SlotAttentionTile(BLOCK, 16, 16, 0, 8, 3)
    return SlotAttentionTile(BLOCK, 32, 64, 0, 8, 3)


def merge_tile(dtype: torch.dtype, num_slots: int, width: int) -> MergeTile:
    """The tile for final tokens of ``dtype``: the same for every batch, and fit for every GPU."""
    block_slots = slots_per_tile(num_slots)
    if dtype == torch.float32:
        return MergeTile(block_slots, 16, 32, 8, 3)
    return MergeTile(block_slots, 64, min(64, power_of_two(width)), 8, 3)


def merge(
    q: Tensor, k: Tensor, final_tokens: Tensor, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """`ocvtp::merge` in two launches, without a ``[K, N]`` attention in memory."""
    args = args_of(q, k, scale)
    final_tokens = unit_stride(final_tokens)
    batch, num_slots, _ = q.shape
    num_tokens, width = final_tokens.shape[1:]
    assignment = torch.empty((batch, num_tokens), dtype=torch.int32, device=q.device)
    attention = torch.empty((batch, num_tokens), dtype=torch.float32, device=q.device)
    merged = final_tokens.new_empty((batch, num_slots, width))
    mass = q.new_empty((batch, num_slots))
    walk = assignment_tile(q.dtype)
    launch(
        assignment_kernel,
        (batch * ceil_div(num_tokens, walk.block_tokens),),
        {**args.arguments(walk), "assignment": assignment, "attention": attention},
        num_warps=walk.num_warps,
        num_stages=walk.num_stages,
    )
    tile = merge_tile(final_tokens.dtype, num_slots, width)
    programs = batch * ceil_div(num_slots, tile.block_slots) * ceil_div(width, tile.block_d)
    launch(
        merge_kernel,
        (programs,),
        {
            "final_tokens": final_tokens,
            "assignment": assignment,
            "attention": attention,
            "merged": merged,
            "mass": mass,
            "num_slots": num_slots,
            "num_tokens": num_tokens,
            "width": width,
            "final_image_stride": final_tokens.stride(0),
            "final_row_stride": final_tokens.stride(1),
            "BLOCK_SLOTS": tile.block_slots,
            "BLOCK_TOKENS": tile.block_tokens,
            "BLOCK_D": tile.block_d,
            "PRECISION": dot_precision(final_tokens.dtype),
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return merged, mass
