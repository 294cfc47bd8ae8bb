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

from ocvtp_kernels.ops.slot_attention.tiles import BLOCK, CompeteTile, power_of_two, slots_per_tile
from ocvtp_kernels.ops.slot_attention.triton.forward import Competition
from ocvtp_kernels.ops.slot_attention.triton.logits import inside, logits_tile, standing
from ocvtp_kernels.triton_common.launch import dot_precision, launch, unit_stride
from ocvtp_kernels.triton_common.linear_tiles import ceil_div


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
    SLOTS: tl.constexpr,
    TOKENS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each token's strongest slot int32 and its attention there float32, both ``[B, N]``.

    Ties go to the lowest slot; so does a token without a softmax, whose share is NaN.
    """
    blocks = tl.cdiv(num_tokens, TOKENS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    token = (tl.program_id(0) % blocks) * TOKENS + tl.arange(0, TOKENS)
    live_token = token < num_tokens
    k_row = k + image * k_image_stride + inside(token, num_tokens) * k_row_stride
    top = tl.full([TOKENS], float("-inf"), tl.float32)
    others = tl.zeros([TOKENS], tl.float32)
    owner = tl.zeros([TOKENS], tl.int32)
    for first_slot in range(0, num_slots, SLOTS):
        slot = first_slot + tl.arange(0, SLOTS)
        place = image * num_slots + slot
        logits = logits_tile(
            q + image * q_image_stride + inside(slot, num_slots) * q_row_stride,
            k_row,
            slot < num_slots,
            live_token,
            slot_constant + place,
            slot_mask + place,
            depth,
            scale,
            CONSTANT,
            MASK,
            SLOTS,
            TOKENS,
            DEPTH,
            EVEN,
            PRECISION,
        )
        block_top, block_others = standing(logits)
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
    share = tl.div_rn(tl.full([TOKENS], 1.0, tl.float32), 1.0 + others) + (top - top)
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
    SLOTS: tl.constexpr,
    TOKENS: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Merged ``[B, K, C]`` and mass ``[B, K]``, the sum of the shares that a slot owns.

    A program takes one image, one block of slots and one chunk of the channels.
    """
    chunks = tl.cdiv(width, CHUNK)
    slot_blocks = tl.cdiv(num_slots, SLOTS)
    chunk = tl.program_id(0) % chunks
    slot_block = (tl.program_id(0) // chunks) % slot_blocks
    image = (tl.program_id(0) // (chunks * slot_blocks)).to(tl.int64)
    slot = slot_block * SLOTS + tl.arange(0, SLOTS)
    live_slot = slot < num_slots
    channel = chunk * CHUNK + tl.arange(0, CHUNK)
    live_channel = channel < width
    total = tl.zeros([SLOTS, CHUNK], tl.float32)
    weight = tl.zeros([SLOTS], tl.float32)
    total_mass = tl.zeros([SLOTS], tl.float32)
    for first_token in range(0, num_tokens, TOKENS):
        token = first_token + tl.arange(0, TOKENS)
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

    slots: int
    tokens: int
    chunk: int
    warps: int
    stages: int


def owners_tile(dtype: torch.dtype) -> CompeteTile:
    """The tile of the pass over all slots, block by block; it has no channels of values."""
    if dtype == torch.float32:
        return CompeteTile(BLOCK, 16, 16, 0, 8, 3)
    return CompeteTile(BLOCK, 32, 64, 0, 8, 3)


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
    competition = Competition(unit_stride(q), unit_stride(k), scale)
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
        (batch * ceil_div(num_tokens, walk.tokens),),
        {**competition.arguments(walk), "owners": owners, "shares": shares},
        num_warps=walk.warps,
        num_stages=walk.stages,
    )
    tile = merge_tile(final.dtype, num_slots, width)
    parts = batch * ceil_div(num_slots, tile.slots) * ceil_div(width, tile.chunk)
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
            "SLOTS": tile.slots,
            "TOKENS": tile.tokens,
            "CHUNK": tile.chunk,
            "PRECISION": dot_precision(final.dtype),
        },
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return merged, mass
