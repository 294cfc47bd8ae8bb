"""The competition: softmax over slots and weighted mean over tokens, in one pass.

Up to `ONE_TILE` slots stand in one tile, so that a token's softmax never leaves it. Beyond, a first
pass stores two numbers a token (`softmax_stats_kernel`) and each block of slots is a program of its
own. The tokens fall into groups, fixed by N alone. A group's sum starts at zero and groups add up
in order, whether one program takes them all or one takes each and the last to finish adds them up:
the result has the same bits either way, so an image alone equals itself in a batch.
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


@triton.jit
def softmax_stats_kernel(
    q,
    k,
    slot_constant,
    slot_mask,
    softmax_stats,
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
    PDL: tl.constexpr,
):
    """Each token's `softmax_stats_of` over all slots, block by block: float32 ``[B, N, 2]``."""
    wait_for_launches_before(PDL)
    blocks = tl.cdiv(num_tokens, BLOCK_TOKENS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    token = (tl.program_id(0) % blocks) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    live_token = token < num_tokens
    k_row = k + image * k_image_stride + clamp_index(token, num_tokens) * k_row_stride
    top = tl.full([BLOCK_TOKENS], float("-inf"), tl.float32)
    others = tl.zeros([BLOCK_TOKENS], tl.float32)
    for first_slot in range(0, num_slots, BLOCK_SLOTS):
        slot = first_slot + tl.arange(0, BLOCK_SLOTS)
        live_slot = slot < num_slots
        place = image * num_slots + slot
        logits = logits_tile(
            q + image * q_image_stride + clamp_index(slot, num_slots) * q_row_stride,
            k_row,
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
        block_top, block_others = softmax_stats_of(logits)
        leads = block_top > top
        low, high = tl.where(leads, top, block_top), tl.where(leads, block_top, top)
        # The beaten top is one of the others now.
        beaten = tl.where(low == float("-inf"), 0.0, tl.exp(low - high))
        beaten_others = tl.where(leads, others, block_others)
        others = tl.where(leads, block_others, others) + beaten * (1.0 + beaten_others)
        top = high
    row = softmax_stats + (image * num_tokens + token) * 2
    tl.store(row, top, mask=live_token)
    tl.store(row + 1, others, mask=live_token)


@triton.jit(do_not_specialize=["groups", "groups_per_program", "blocks_per_group"])
def compete_kernel(
    q,
    k,
    v,
    slot_constant,
    slot_mask,
    softmax_stats,
    partial,
    partial_mass,
    arrivals,
    updates,
    mass,
    attention,
    num_slots,
    num_tokens,
    depth,
    width,
    scale,
    mass_eps,
    q_image_stride,
    q_row_stride,
    k_image_stride,
    k_row_stride,
    v_image_stride,
    v_row_stride,
    groups,
    groups_per_program,
    blocks_per_group,
    CONSTANT: tl.constexpr,
    MASK: tl.constexpr,
    SOFTMAX_STATS: tl.constexpr,
    ATTENTION: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    CHUNK: tl.constexpr,
    SHARES: tl.constexpr,
    PIECE: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Updates ``(A v) / (sum_n A + mass_eps)`` ``[B, K, E]`` and mass ``sum_n A`` ``[B, K]``.

    A program takes one image, one block of slots, one chunk of v's channels and one group of
    tokens, or all groups. ``SHARES`` is the most programs that share a part, 0 if none do.
    """
    wait_for_launches_before(PDL)
    # A wide chunk leaves no registers for what comes later, and is stored half by half.
    EARLY: tl.constexpr = CHUNK <= 128
    PARTS: tl.constexpr = 1 if EARLY else 2
    program = tl.program_id(0)
    shares = tl.cdiv(groups, groups_per_program)
    chunks = tl.cdiv(width, CHUNK)
    slot_blocks = tl.cdiv(num_slots, BLOCK_SLOTS)
    part = program // shares
    share = program % shares
    chunk = part % chunks
    slot_block = (part // chunks) % slot_blocks
    image = (part // (chunks * slot_blocks)).to(tl.int64)

    slot = slot_block * BLOCK_SLOTS + tl.arange(0, BLOCK_SLOTS)
    live_slot = slot < num_slots
    slot_place = image * num_slots + slot
    q_row = q + image * q_image_stride + clamp_index(slot, num_slots) * q_row_stride
    channel = chunk * CHUNK + tl.arange(0, CHUNK)
    live_channel = channel < width
    total = tl.zeros([BLOCK_SLOTS, CHUNK], tl.float32)
    total_mass = tl.zeros([BLOCK_SLOTS], tl.float32)
    for group in range(share * groups_per_program, (share + 1) * groups_per_program):
        group_sum = tl.zeros([BLOCK_SLOTS, CHUNK], tl.float32)
        group_mass = tl.zeros([BLOCK_SLOTS], tl.float32)
        for block in range(group * blocks_per_group, (group + 1) * blocks_per_group):
            token = block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
            live_token = token < num_tokens
            # Fetched while the logits are made, as far as registers hold it.
            if SOFTMAX_STATS:
                top, others = load_softmax_stats(
                    softmax_stats, image * num_tokens + token, live_token
                )
            if EARLY:
                v_row = v + image * v_image_stride + token.to(tl.int64) * v_row_stride
                values = load_values(v_row, channel, live_token, live_channel)
            logits = logits_tile(
                q_row,
                k + image * k_image_stride + clamp_index(token, num_tokens) * k_row_stride,
                live_slot,
                live_token,
                slot_constant + slot_place,
                slot_mask + slot_place,
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
            if not SOFTMAX_STATS:
                top, others = softmax_stats_of(logits)
            a = tl.exp(logits - top[None, :])
            if k.dtype.element_ty == tl.float32:
                a = tl.div_rn(a, (1.0 + others)[None, :])
            else:
                # One division a token, rounded less well than the products that it goes into.
                leader = 1.0 / (1.0 + others)
                a *= leader[None, :]
            a = tl.where(live_slot[:, None] & live_token[None, :], a, 0.0)
            if ATTENTION:
                if chunk == 0:
                    tl.store(
                        attention + slot_place[:, None] * num_tokens + token[None, :],
                        a.to(attention.dtype.element_ty),
                        mask=live_slot[:, None] & live_token[None, :],
                    )
            if not EARLY:
                v_row = v + image * v_image_stride + token.to(tl.int64) * v_row_stride
                values = load_values(v_row, channel, live_token, live_channel)
            group_mass += tl.sum(a, axis=1)
            group_sum = tl.dot(a.to(values.dtype), values, group_sum, input_precision=PRECISION)
        if SHARES == 0:
            # The where keeps the compiler from starting the group's sum at `total`, not at zero.
            total += tl.where(live_slot[:, None], group_sum, 0.0)
            total_mass += group_mass
        else:
            # The program's only group: no registers for two sums.
            total = group_sum
            total_mass = group_mass

    updates_row = updates + slot_place * width
    row = tl.arange(0, BLOCK_SLOTS)
    first_part = part.to(tl.int64) * shares
    here = first_part + share
    totals = (total, total)
    if PARTS == 2:
        totals = tl.split(tl.permute(tl.reshape(total, (BLOCK_SLOTS, 2, CHUNK // 2)), (0, 2, 1)))
    for half in tl.static_range(PARTS):
        of_chunk = half * (CHUNK // PARTS) + tl.arange(0, CHUNK // PARTS)
        of_width = chunk * CHUNK + of_chunk
        if SHARES == 0:
            store_mean(updates_row, totals[half], total_mass, of_width, live_slot, width, mass_eps)
        else:
            place = partial + here * BLOCK_SLOTS * CHUNK + row[:, None] * CHUNK + of_chunk[None, :]
            tl.store(place, totals[half], mask=live_slot[:, None] & (of_width < width)[None, :])
    if SHARES == 0:
        if chunk == 0:
            tl.store(mass + slot_place, total_mass.to(mass.dtype.element_ty), mask=live_slot)
    else:
        tl.store(partial_mass + here * BLOCK_SLOTS + row, total_mass, mask=live_slot)
        # All threads' stores come before the one thread that reports them.
        tl.debug_barrier()
        if tl.atomic_add(arrivals + part, 1, sem="acq_rel") + 1 == shares:
            # As it was found, for the next launch.
            tl.store(arrivals + part, 0)
            # The last to arrive adds up all shares, its own too, in their order. All loads of a
            # piece are under way at once, past the first cache, which others' stores do not reach.
            every_mass = tl.zeros([BLOCK_SLOTS], tl.float32)
            for other in tl.static_range(SHARES):
                there = live_slot & (row < tl.where(shares > other, BLOCK_SLOTS, 0))
                its_mass = partial_mass + (first_part + other) * BLOCK_SLOTS + row
                every_mass += tl.load(its_mass, mask=there, other=0.0, cache_modifier=".cg")
            for piece in range(0, CHUNK, PIECE):
                inner = piece + tl.arange(0, PIECE)
                every = tl.zeros([BLOCK_SLOTS, PIECE], tl.float32)
                for other in tl.static_range(SHARES):
                    there = live_slot & (row < tl.where(shares > other, BLOCK_SLOTS, 0))
                    its = partial + (first_part + other) * BLOCK_SLOTS * CHUNK + row * CHUNK
                    every += tl.load(
                        its[:, None] + inner[None, :],
                        mask=there[:, None] & (chunk * CHUNK + inner < width)[None, :],
                        other=0.0,
                        cache_modifier=".cg",
                    )
                column = chunk * CHUNK + inner
                store_mean(updates_row, every, every_mass, column, live_slot, width, mass_eps)
            if chunk == 0:
                tl.store(mass + slot_place, every_mass.to(mass.dtype.element_ty), mask=live_slot)


@triton.jit
def load_softmax_stats(softmax_stats, token_place, live_token):
    """What `softmax_stats_kernel` stored of tokens."""
    row = softmax_stats + token_place * 2
    top = tl.load(row, mask=live_token, other=0.0)
    return top, tl.load(row + 1, mask=live_token, other=0.0)


@triton.jit
def load_values(v_row, channel, live_token, live_channel):
    """A chunk of the values ``[BLOCK_TOKENS, CHUNK]``, zero in the padding."""
    live = live_token[:, None] & live_channel[None, :]
    return tl.load(v_row[:, None] + channel[None, :], mask=live, other=0.0)


@triton.jit
def store_mean(updates_row, total, total_mass, channel, live_slot, width, mass_eps):
    """Stores ``total / (total_mass + mass_eps)``, some channels of the slots' updates."""
    mean = tl.div_rn(total, (total_mass + mass_eps)[:, None])
    live = live_slot[:, None] & (channel < width)[None, :]
    there = updates_row[:, None] + channel[None, :]
    tl.store(there, mean.to(updates_row.dtype.element_ty), mask=live)
