"""The competition: softmax over slots and weighted mean over tokens, in one pass.

Up to `ONE_TILE` slots stand in one tile, so that a token's softmax never leaves it. Beyond, a first
pass stores two numbers a token (`standings_kernel`) and each block of slots is a program of its
own. The tokens fall into groups, fixed by N alone. A group's sum starts at zero and groups add up
in order, whether one program takes them all or one takes each and the last to finish adds them up:
the result has the same bits either way, so an image alone equals itself in a batch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ocvtp_kernels.slots.triton_logits import logits_tile, standing


@triton.jit
def standings_kernel(
    q,
    k,
    slot_constant,
    slot_mask,
    standings,
    num_slots,
    num_tokens,
    depth,
    scale,
    eps,
    q_image_stride,
    q_row_stride,
    k_image_stride,
    k_row_stride,
    NORM: tl.constexpr,
    CONSTANT: tl.constexpr,
    MASK: tl.constexpr,
    SLOTS: tl.constexpr,
    TOKENS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each token's `standing` over all slots, block by block: float32 ``[B, N, 2]``."""
    blocks = tl.cdiv(num_tokens, TOKENS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    token = (tl.program_id(0) % blocks) * TOKENS + tl.arange(0, TOKENS)
    live_token = token < num_tokens
    k_row = k + image * k_image_stride + token.to(tl.int64) * k_row_stride
    top = tl.full([TOKENS], float("-inf"), tl.float32)
    others = tl.zeros([TOKENS], tl.float32)
    for first_slot in range(0, num_slots, SLOTS):
        slot = first_slot + tl.arange(0, SLOTS)
        live_slot = slot < num_slots
        place = image * num_slots + slot
        logits, _mean, _scale = logits_tile(
            q + image * q_image_stride + slot.to(tl.int64) * q_row_stride,
            k_row,
            live_slot,
            live_token,
            slot_constant + place,
            slot_mask + place,
            depth,
            scale,
            eps,
            NORM,
            CONSTANT,
            MASK,
            SLOTS,
            TOKENS,
            DEPTH,
            PRECISION,
        )
        block_top, block_others = standing(logits, SLOTS)
        leads = block_top > top
        low, high = tl.where(leads, top, block_top), tl.where(leads, block_top, top)
        # The beaten top is one of the others now.
        beaten = tl.where(low == float("-inf"), 0.0, tl.exp(low - high))
        beaten_others = tl.where(leads, others, block_others)
        others = tl.where(leads, block_others, others) + beaten * (1.0 + beaten_others)
        top = high
    row = standings + (image * num_tokens + token) * 2
    tl.store(row, top, mask=live_token)
    tl.store(row + 1, others, mask=live_token)


@triton.jit(do_not_specialize=["groups", "groups_per_program", "blocks_per_group"])
def compete_kernel(
    program,
    q,
    k,
    v,
    slot_constant,
    slot_mask,
    standings,
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
    eps,
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
    NORM: tl.constexpr,
    CONSTANT: tl.constexpr,
    MASK: tl.constexpr,
    STANDINGS: tl.constexpr,
    ATTENTION: tl.constexpr,
    SLOTS: tl.constexpr,
    TOKENS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Updates ``(A v) / (sum_n A + mass_eps)`` ``[B, K, E]`` and mass ``sum_n A`` ``[B, K]``.

    A program takes one image, one block of slots, one chunk of v's channels and one group of
    tokens, or all groups: the ``program``-th, or, as a kernel of its own, its share. ``v`` is
    ``LN(k)`` with NORM, as the logits' keys are.
    """
    if program is None:
        program = tl.program_id(0)
    shares = tl.cdiv(groups, groups_per_program)
    chunks = tl.cdiv(width, CHUNK)
    slot_blocks = tl.cdiv(num_slots, SLOTS)
    part = program // shares
    share = program % shares
    chunk = part % chunks
    slot_block = (part // chunks) % slot_blocks
    image = (part // (chunks * slot_blocks)).to(tl.int64)

    slot = slot_block * SLOTS + tl.arange(0, SLOTS)
    live_slot = slot < num_slots
    slot_place = image * num_slots + slot
    q_row = q + image * q_image_stride + slot.to(tl.int64) * q_row_stride
    channel = chunk * CHUNK + tl.arange(0, CHUNK)
    live_channel = channel < width
    total = tl.zeros([SLOTS, CHUNK], tl.float32)
    total_mass = tl.zeros([SLOTS], tl.float32)
    for group in range(share * groups_per_program, (share + 1) * groups_per_program):
        group_sum = tl.zeros([SLOTS, CHUNK], tl.float32)
        group_mass = tl.zeros([SLOTS], tl.float32)
        for block in range(group * blocks_per_group, (group + 1) * blocks_per_group):
            token = block * TOKENS + tl.arange(0, TOKENS)
            live_token = token < num_tokens
            far_token = token.to(tl.int64)
            logits, mean, scale_token = logits_tile(
                q_row,
                k + image * k_image_stride + far_token * k_row_stride,
                live_slot,
                live_token,
                slot_constant + slot_place,
                slot_mask + slot_place,
                depth,
                scale,
                eps,
                NORM,
                CONSTANT,
                MASK,
                SLOTS,
                TOKENS,
                DEPTH,
                PRECISION,
            )
            if STANDINGS:
                row = standings + (image * num_tokens + token) * 2
                top = tl.load(row, mask=live_token, other=0.0)
                others = tl.load(row + 1, mask=live_token, other=0.0)
            else:
                top, others = standing(logits, SLOTS)
            a = tl.div_rn(tl.exp(logits - top[None, :]), (1.0 + others)[None, :])
            a = tl.where(live_slot[:, None] & live_token[None, :], a, 0.0)
            if ATTENTION:
                if chunk == 0:
                    tl.store(
                        attention + slot_place[:, None] * num_tokens + token[None, :],
                        a.to(attention.dtype.element_ty),
                        mask=live_slot[:, None] & live_token[None, :],
                    )
            values = tl.load(
                v + image * v_image_stride + far_token[:, None] * v_row_stride + channel[None, :],
                mask=live_token[:, None] & live_channel[None, :],
                other=0.0,
            )
            if NORM:
                normed = (values.to(tl.float32) - mean[:, None]) * scale_token[:, None]
                normed = tl.where(live_token[:, None], normed, 0.0)
                values = normed.to(values.dtype)
            group_mass += tl.sum(a, axis=1)
            group_sum = tl.dot(a.to(values.dtype), values, group_sum, input_precision=PRECISION)
        # The where keeps the compiler from starting the group's sum at `total` instead of zero.
        total += tl.where(live_slot[:, None], group_sum, 0.0)
        total_mass += group_mass

    tile = tl.arange(0, SLOTS)[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    live = live_slot[:, None] & live_channel[None, :]
    first_part = part.to(tl.int64) * shares
    arrived = 1
    if shares > 1:
        here = first_part + share
        tl.store(partial + here * SLOTS * CHUNK + tile, total, mask=live)
        tl.store(partial_mass + here * SLOTS + tl.arange(0, SLOTS), total_mass, mask=live_slot)
        # All threads' stores come before the one thread that reports them.
        tl.debug_barrier()
        arrived = tl.atomic_add(arrivals + part, 1, sem="acq_rel") + 1
    # The last to arrive adds up all shares, its own too, in their order.
    adds_up = (shares > 1) & (arrived == shares)
    total = tl.where(adds_up, 0.0, total)
    total_mass = tl.where(adds_up, 0.0, total_mass)
    for other in range(tl.where(adds_up, shares, 0)):
        there = first_part + other
        # Past the first cache, which other programs' stores do not reach.
        total += tl.load(partial + there * SLOTS * CHUNK + tile, mask=live, cache_modifier=".cg")
        place = partial_mass + there * SLOTS + tl.arange(0, SLOTS)
        total_mass += tl.load(place, mask=live_slot, cache_modifier=".cg")
    if arrived == shares:
        # As it was found, for the next launch.
        tl.store(arrivals + part, 0, mask=adds_up)
        mean_value = tl.div_rn(total, (total_mass + mass_eps)[:, None])
        tl.store(
            updates + slot_place[:, None] * width + channel[None, :],
            mean_value.to(updates.dtype.element_ty),
            mask=live,
        )
        if chunk == 0:
            tl.store(mass + slot_place, total_mass.to(mass.dtype.element_ty), mask=live_slot)
