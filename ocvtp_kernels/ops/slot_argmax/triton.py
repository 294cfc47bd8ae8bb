"""Each slot's best token: logits, softmax over slots and argmax over tokens in one pass.

A pick travels as one integer that orders as the reference does, higher score first and then lower
id: ``ordered(score) * 2^31 + (2^31 - 1 - id)``, so that taking a maximum never depends on an order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ocvtp_kernels.ops.slot_attention.triton.logits import (
    clamp_index,
    logits_tile,
    softmax_stats_of,
)
from ocvtp_kernels.triton_common.dependent import wait_for_launches_before
from ocvtp_kernels.triton_common.maths import log1p, ordered


@triton.jit
def pack_pick(score, token):
    """Score and id as one integer of their order."""
    return ordered(score) * 2147483648 + (2147483647 - token)


@triton.jit
def pick_token(pick):
    """The id that `pack_pick` packed."""
    return 2147483647 - (pick % 2147483648)


@triton.jit
def pick_score(pick):
    """The score that `pack_pick` packed, float32."""
    order = pick // 2147483648 - 2147483648
    bits = tl.where(order < 0, -order - 2147483649, order)
    return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def argmax_kernel(
    q,
    k,
    slot_constant,
    slot_mask,
    softmax_stats,
    below,
    picks,
    evidence,
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
    SOFTMAX_STATS: tl.constexpr,
    BELOW: tl.constexpr,
    EVIDENCE: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Picks int64 ``[B, token blocks, K]``, the best of each block; evidence float32 ``[B, N]``.

    With BELOW only picks beneath ``below`` ``[B, K]`` count: the next best. The evidence of a token
    is its highest score over slots.
    """
    wait_for_launches_before(PDL)
    blocks = tl.cdiv(num_tokens, BLOCK_TOKENS)
    slot_blocks = tl.cdiv(num_slots, BLOCK_SLOTS)
    block = tl.program_id(0) % blocks
    slot_block = (tl.program_id(0) // blocks) % slot_blocks
    image = (tl.program_id(0) // (blocks * slot_blocks)).to(tl.int64)
    slot = slot_block * BLOCK_SLOTS + tl.arange(0, BLOCK_SLOTS)
    token = block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    live_slot = slot < num_slots
    live_token = token < num_tokens
    place = image * num_slots + slot
    logits = logits_tile(
        q + image * q_image_stride + clamp_index(slot, num_slots) * q_row_stride,
        k + image * k_image_stride + clamp_index(token, num_tokens) * k_row_stride,
        live_slot,
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
    if SOFTMAX_STATS:
        row = softmax_stats + (image * num_tokens + token) * 2
        top = tl.load(row, mask=live_token, other=0.0)
        others = tl.load(row + 1, mask=live_token, other=0.0)
    else:
        top, others = softmax_stats_of(logits)
    rivals = log1p(others)
    score = (logits - top[None, :]) - rivals[None, :]
    pick = pack_pick(score, token[None, :])
    live = live_slot[:, None] & live_token[None, :]
    if BELOW:
        limit = tl.load(below + place, mask=live_slot, other=0)
        live = live & (pick < limit[:, None])
    best = tl.max(tl.where(live, pick, -1), axis=1)
    tl.store(picks + (image * blocks + block) * num_slots + slot, best, mask=live_slot)
    if EVIDENCE:
        if slot_block == 0:
            # top - top is 0, and NaN where the leading logit is infinite, as every score is then.
            tl.store(evidence + image * num_tokens + token, (top - top) - rivals, mask=live_token)


@triton.jit
def best_pick(
    picks, slot, live_slot, blocks, num_slots, BLOCKS: tl.constexpr, PASSES: tl.constexpr
):
    """The best over an image's token blocks of each slot: int64, -1 for slots that are not there.

    ``picks`` is where the image's begin.
    """
    best = tl.full([BLOCKS, slot.shape[0]], -1, tl.int64)
    for first in range(0, blocks, BLOCKS * PASSES):
        # Unrolled, so that no load waits for another.
        for step in tl.static_range(PASSES):
            # The last block once more is quicker than a mask.
            block = tl.minimum(first + step * BLOCKS + tl.arange(0, BLOCKS), blocks - 1)
            there = (block * num_slots)[:, None] + slot[None, :]
            best = tl.maximum(best, tl.load(picks + there, mask=live_slot[None, :]))
    return tl.where(live_slot, tl.max(best, axis=0), -1)


@triton.jit
def best_kernel(
    picks,
    best,
    ids,
    peak,
    blocks,
    num_slots,
    rank,
    ranks,
    ANSWER: tl.constexpr,
    LOG: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCKS: tl.constexpr,
    PASSES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Best pick of each slot: row ``rank`` of int64 ``[B, ranks, K]``, or its id and attention.

    With LOG the attention's logarithm. One program takes a block of slots of an image.
    """
    wait_for_launches_before(PDL)
    slot_blocks = tl.cdiv(num_slots, SLOTS)
    image = (tl.program_id(0) // slot_blocks).to(tl.int64)
    slot = (tl.program_id(0) % slot_blocks) * SLOTS + tl.arange(0, SLOTS)
    live_slot = slot < num_slots
    of_image = picks + image * blocks * num_slots
    pick = best_pick(of_image, slot, live_slot, blocks, num_slots, BLOCKS, PASSES)
    if ANSWER:
        place = image * num_slots + slot
        tl.store(ids + place, pick_token(pick), mask=live_slot)
        score = pick_score(pick)
        if not LOG:
            score = tl.exp(score)
        tl.store(peak + place, score.to(peak.dtype.element_ty), mask=live_slot)
    else:
        tl.store(best + (image * ranks + rank) * num_slots + slot, pick, mask=live_slot)
