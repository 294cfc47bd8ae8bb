"""Slot-weighted means of the final tokens: who owns each token, then each slot's mean.

The first kernel keeps two numbers a token, its owner and its share in it; the second builds the
weights of a block of slots from them and sums the tokens, block by block in order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.ops.slot_attention.tiles import BLOCK, SlotAttentionTile, slots_per_tile
from ocvtp_kernels.ops.slot_attention.triton.forward import SlotAttentionArgs
from ocvtp_kernels.ops.slot_attention.triton.logits import (
    clamp_index,
    logits_tile,
    softmax_stats_of,
)
from ocvtp_kernels.triton_common.blocks import ceil_div, power_of_two
from ocvtp_kernels.triton_common.launch import dot_precision, launch, unit_stride


@triton.jit
def owners_kernel(
    q,
    k,
    slot_constant,
    slot_mask,
    owners,
    shares,
    num_slots,
    num_tokens,
    depth,
    scale,
    q_image_stride,
    q_row_stride,
    k_image_stride,
    k_row_stride,
    CONSTANT: tl.constexpr,
    MASK: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each token's strongest slot int32 and its attention there float32, both ``[B, N]``.

    Ties go to the lowest slot; so does a token without a softmax, whose share is NaN.
    """
    blocks = tl.cdiv(num_tokens, BLOCK_TOKENS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    token = (tl.program_id(0) % blocks) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    live_token = token < num_tokens
    k_row = k + image * k_image_stride + clamp_index(token, num_tokens) * k_row_stride
    top = tl.full([BLOCK_TOKENS], float("-inf"), tl.float32)
    others = tl.zeros([BLOCK_TOKENS], tl.float32)
    owner = tl.zeros([BLOCK_TOKENS], tl.int32)
    for first_slot in range(0, num_slots, BLOCK_SLOTS):
        slot = first_slot + tl.arange(0, BLOCK_SLOTS)
        place = image * num_slots + slot
        logits = logits_tile(
            q + image * q_image_stride + clamp_index(slot, num_slots) * q_row_stride,
            k_row,
            slot < num_slots,
            live_token,
            slot_constant + place,
            slot_mask + place,
            depth,
            scale,
            CONSTANT,
            MASK,
            BLOCK_SLOTS,
            BLOCK_TOKENS,
            BLOCK_K,
            EVEN_K,
            PRECISION,
        )
        block_top, block_others = softmax_stats_of(logits)
        leader = tl.min(tl.where(logits == block_top[None, :], slot[:, None], num_slots), axis=0)
        leads = block_top > top
        low, high = tl.where(leads, top, block_top), tl.where(leads, block_top, top)
        # The beaten top is one of the others now.
        beaten = tl.where(low == float("-inf"), 0.0, tl.exp(low - high))
        beaten_others = tl.where(leads, others, block_others)
        others = tl.where(leads, block_others, others) + beaten * (1.0 + beaten_others)
        owner = tl.where(leads, leader, owner)
        top = high
    # top - top is 0, and NaN where the leading logit is infinite, as the softmax is then.
    share = tl.div_rn(tl.full([BLOCK_TOKENS], 1.0, tl.float32), 1.0 + others) + (top - top)
    owner = tl.where(share != share, 0, owner)
    tl.store(owners + image * num_tokens + token, owner, mask=live_token)
    tl.store(shares + image * num_tokens + token, share, mask=live_token)


@triton.jit
def merge_kernel(
    final,
    owners,
    shares,
    merged,
    mass,
    num_slots,
    num_tokens,
    width,
    final_image_stride,
    final_row_stride,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Merged ``[B, K, C]`` and mass ``[B, K]``, the sum of the shares that a slot owns.

    A program takes one image, one block of slots and one chunk of the channels.
    """
    chunks = tl.cdiv(width, BLOCK_D)
    slot_blocks = tl.cdiv(num_slots, BLOCK_SLOTS)
    chunk = tl.program_id(0) % chunks
    slot_block = (tl.program_id(0) // chunks) % slot_blocks
    image = (tl.program_id(0) // (chunks * slot_blocks)).to(tl.int64)
    slot = slot_block * BLOCK_SLOTS + tl.arange(0, BLOCK_SLOTS)
    live_slot = slot < num_slots
    channel = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
    live_channel = channel < width
    total = tl.zeros([BLOCK_SLOTS, BLOCK_D], tl.float32)
    weight = tl.zeros([BLOCK_SLOTS], tl.float32)
    total_mass = tl.zeros([BLOCK_SLOTS], tl.float32)
    for first_token in range(0, num_tokens, BLOCK_TOKENS):
        token = first_token + tl.arange(0, BLOCK_TOKENS)
        live_token = token < num_tokens
        owner = tl.load(owners + image * num_tokens + token, mask=live_token, other=-1)
        share = tl.load(shares + image * num_tokens + token, mask=live_token, other=0.0)
        owned = tl.where(owner[None, :] == slot[:, None], share[None, :], 0.0)
        rows = tl.load(
            final
            + image * final_image_stride
            + token.to(tl.int64)[:, None] * final_row_stride
            + channel[None, :],
            mask=live_token[:, None] & live_channel[None, :],
            other=0.0,
        )
        rounded = owned.to(rows.dtype)
        total_mass += tl.sum(owned, axis=1)
        weight += tl.sum(rounded.to(tl.float32), axis=1)
        total = tl.dot(rounded, rows, total, input_precision=PRECISION)
    # Over the weights as they were rounded it is a true mean: of one token, that token.
    mean = tl.div_rn(total, tl.where(weight == 0.0, 1.0, weight)[:, None])
    place = image * num_slots + slot
    tl.store(
        merged + place[:, None] * width + channel[None, :],
        mean.to(merged.dtype.element_ty),
        mask=live_slot[:, None] & live_channel[None, :],
    )
    if chunk == 0:
        tl.store(mass + place, total_mass.to(mass.dtype.element_ty), mask=live_slot)


class MergeTile(NamedTuple):
    """One program's slots, its walk along the tokens, and its channels of the final tokens."""

    block_slots: int
    block_tokens: int
    block_d: int
    num_warps: int
    num_stages: int


def owners_tile(dtype: torch.dtype) -> SlotAttentionTile:
    """The tile of the pass over all slots, block by block; it has no channels of values."""
    if dtype == torch.float32:
        return SlotAttentionTile(BLOCK, 16, 16, 0, 8, 3)
    return SlotAttentionTile(BLOCK, 32, 64, 0, 8, 3)


def merge_tile(dtype: torch.dtype, num_slots: int, width: int) -> MergeTile:
    """The tile for final tokens of ``dtype``: the same for every batch, and fit for every GPU."""
    slots = slots_per_tile(num_slots)
    if dtype == torch.float32:
        return MergeTile(slots, 16, 32, 8, 3)
    return MergeTile(slots, 64, min(64, power_of_two(width)), 8, 3)


def merge(q: Tensor, k: Tensor, final: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """`ocvtp_kernels.ops.argmax_gather.reference.merge` in two launches, the attention never stored.

    Args:
        q: ``[B, K, D]``; k: ``[B, N, D]``; final: ``[B, N, C]`` of a dtype of its own.

    Returns:
        merged ``[B, K, C]`` in the dtype of ``final``, and mass ``[B, K]`` in that of ``q``.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    competition = SlotAttentionArgs(unit_stride(q), unit_stride(k), scale)
    final = unit_stride(final)
    batch, num_slots, _ = q.shape
    num_tokens, width = final.shape[1:]
    owners = torch.empty((batch, num_tokens), dtype=torch.int32, device=q.device)
    shares = torch.empty((batch, num_tokens), dtype=torch.float32, device=q.device)
    merged = final.new_empty((batch, num_slots, width))
    mass = q.new_empty((batch, num_slots))
    walk = owners_tile(q.dtype)
    launch(
        owners_kernel,
        (batch * ceil_div(num_tokens, walk.block_tokens),),
        {**competition.arguments(walk), "owners": owners, "shares": shares},
        num_warps=walk.num_warps,
        num_stages=walk.num_stages,
    )
    tile = merge_tile(final.dtype, num_slots, width)
    parts = batch * ceil_div(num_slots, tile.block_slots) * ceil_div(width, tile.block_d)
    launch(
        merge_kernel,
        (parts,),
        {
            "final": final,
            "owners": owners,
            "shares": shares,
            "merged": merged,
            "mass": mass,
            "num_slots": num_slots,
            "num_tokens": num_tokens,
            "width": width,
            "final_image_stride": final.stride(0),
            "final_row_stride": final.stride(1),
            "BLOCK_SLOTS": tile.block_slots,
            "BLOCK_TOKENS": tile.block_tokens,
            "BLOCK_D": tile.block_d,
            "PRECISION": dot_precision(final.dtype),
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return merged, mass
