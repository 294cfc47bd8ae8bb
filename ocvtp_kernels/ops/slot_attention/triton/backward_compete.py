"""The gradient of the slots, and, where one tile holds them all, of the tokens on the way.

Tokens fall into groups as in `ocvtp_kernels.ops.slot_attention.triton.compete`: a group's sum starts at zero and
groups add up in order, by one program or by the last of several, so an image alone equals itself in
a batch. Nothing as large as the attention is stored.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ocvtp_kernels.ops.slot_attention.triton.backward_tile import (
    attention_and_gradient,
    slot_deltas,
    slot_numbers,
)


@triton.jit(do_not_specialize=["groups", "groups_per_program", "blocks_per_group"])
def compete_backward_kernel(
    q,
    k,
    v,
    slot_mask,
    softmax_stats,
    delta,
    mass,
    updates,
    grad_updates,
    grad_mass,
    grad_attention,
    mean_gradients,
    partial,
    arrivals,
    grad_q,
    grad_k,
    grad_v,
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
    given_image_stride,
    given_row_stride,
    given_column_stride,
    groups,
    groups_per_program,
    blocks_per_group,
    MASK: tl.constexpr,
    SOFTMAX_STATS: tl.constexpr,
    GIVEN: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARKED: tl.constexpr,
    CHUNK: tl.constexpr,
    PIECE: tl.constexpr,
    SHARES: tl.constexpr,
    SUM_PIECE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of q ``[B, K, D]``; without SOFTMAX_STATS also of k and v, token by token.

    A program takes one image, one block of slots, one chunk of channels and one group of tokens, or
    all groups. Its chunk of dq is a sum over tokens and stays in registers; the chunks of dk and dv
    are whole once all slots of a token are in the tile, and are stored as they come.
    """
    shares = tl.cdiv(groups, groups_per_program)
    most = depth if SOFTMAX_STATS else tl.maximum(depth, width)
    chunks = tl.cdiv(most, CHUNK)
    slot_blocks = tl.cdiv(num_slots, BLOCK_SLOTS)
    part = tl.program_id(0) // shares
    share = tl.program_id(0) % shares
    slot = ((part // chunks) % slot_blocks) * BLOCK_SLOTS + tl.arange(0, BLOCK_SLOTS)
    image = (part // (chunks * slot_blocks)).to(tl.int64)
    first_channel = (part % chunks) * CHUNK
    channel = first_channel + tl.arange(0, CHUNK)
    of_keys = channel < depth

    live_slot = slot < num_slots
    slot_place = image * num_slots + slot
    far_slot = slot.to(tl.int64)
    q_row = q + image * q_image_stride + far_slot * q_row_stride
    grad_row = grad_updates + slot_place * width
    known, per_mass, of_mass = slot_numbers(delta, mass, grad_mass, slot_place, live_slot, mass_eps)
    if not SOFTMAX_STATS:
        known = slot_deltas(
            updates + slot_place * width, grad_row, live_slot, width, BLOCK_SLOTS, BLOCK_K
        )
    tile = tl.arange(0, BLOCK_SLOTS)[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    live = live_slot[:, None] & of_keys[None, :]
    # A wide chunk leaves no registers for two sums: one waits in memory.
    parked = partial + part.to(tl.int64) * BLOCK_SLOTS * CHUNK + tile
    total = tl.zeros([BLOCK_SLOTS, CHUNK], tl.float32)
    for group in range(share * groups_per_program, (share + 1) * groups_per_program):
        group_sum = tl.zeros([BLOCK_SLOTS, CHUNK], tl.float32)
        for block in tl.range(
            group * blocks_per_group, (group + 1) * blocks_per_group, disable_licm=True
        ):
            token = block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
            live_token = token < num_tokens
            far_token = token.to(tl.int64)
            token_place = image * num_tokens + token
            k_row = k + image * k_image_stride + far_token * k_row_stride
            a, gradient, per_mass = attention_and_gradient(
                q_row,
                k_row,
                grad_row,
                v + image * v_image_stride + far_token * v_row_stride,
                live_slot,
                live_token,
                slot_mask + slot_place,
                softmax_stats + token_place * 2,
                grad_attention + image * given_image_stride + far_slot * given_row_stride,
                far_token * given_column_stride,
                known,
                per_mass,
                of_mass,
                depth,
                width,
                scale,
                mass_eps,
                MASK,
                SOFTMAX_STATS,
                GIVEN,
                WHOLE,
                BLOCK_SLOTS,
                BLOCK_TOKENS,
                BLOCK_K,
                PRECISION,
            )
            if SOFTMAX_STATS:
                mean = tl.load(mean_gradients + token_place, mask=live_token, other=0.0)
            else:
                mean = tl.sum(a * gradient, axis=0)
            keys = tl.load(
                k_row[:, None] + channel[None, :],
                mask=live_token[:, None] & of_keys[None, :],
                other=0.0,
            )
            logits = (a * (gradient - mean[None, :])).to(keys.dtype)
            group_sum = tl.dot(logits, keys, group_sum, input_precision=PRECISION)
            if not SOFTMAX_STATS:
                logits = tl.trans(logits)
                weights = tl.trans((a * per_mass[:, None]).to(logits.dtype))
                # In pieces, because the sums over tokens hold most registers.
                for piece in range(0, CHUNK, PIECE):
                    here = first_channel + piece + tl.arange(0, PIECE)
                    of_piece = live_slot[:, None] & (here < depth)[None, :]
                    queries = tl.load(q_row[:, None] + here[None, :], mask=of_piece, other=0.0)
                    pulled = tl.dot(logits, queries, input_precision=PRECISION)
                    tl.store(
                        grad_k + token_place[:, None] * depth + here[None, :],
                        (pulled * scale).to(grad_k.dtype.element_ty),
                        mask=live_token[:, None] & (here < depth)[None, :],
                    )
                    of_piece = live_slot[:, None] & (here < width)[None, :]
                    pulls = tl.load(grad_row[:, None] + here[None, :], mask=of_piece, other=0.0)
                    pulled = tl.dot(weights, pulls, input_precision=PRECISION)
                    tl.store(
                        grad_v + token_place[:, None] * width + here[None, :],
                        pulled.to(grad_v.dtype.element_ty),
                        mask=live_token[:, None] & (here < width)[None, :],
                    )
        if PARKED:
            total = tl.load(parked, mask=live & (group > 0), other=0.0)
            tl.store(parked, total + group_sum, mask=live)
        else:
            # The where keeps the compiler from starting the group's sum at `total`, not at zero.
            total += tl.where(live_slot[:, None], group_sum, 0.0)

    if PARKED:
        total = tl.load(parked, mask=live, other=0.0)
    grad_q_row = grad_q + slot_place * depth
    if SHARES == 0:
        store_gradient(grad_q_row, total * scale, channel, live_slot, depth)
    else:
        first_part = part.to(tl.int64) * shares
        tl.store(partial + (first_part + share) * BLOCK_SLOTS * CHUNK + tile, total, mask=live)
        # All threads' stores come before the one thread that reports them.
        tl.debug_barrier()
        if tl.atomic_add(arrivals + part, 1, sem="acq_rel") + 1 == shares:
            # The last to arrive adds up all shares, its own too, in their order. All loads of a
            # piece are under way at once, past the first cache, which others' stores do not reach.
            row = tl.arange(0, BLOCK_SLOTS)
            for piece in range(0, CHUNK, SUM_PIECE):
                inner = piece + tl.arange(0, SUM_PIECE)
                column = first_channel + inner
                every = tl.zeros([BLOCK_SLOTS, SUM_PIECE], tl.float32)
                for other in tl.static_range(SHARES):
                    there = live_slot & (row < tl.where(shares > other, BLOCK_SLOTS, 0))
                    its = partial + (first_part + other) * BLOCK_SLOTS * CHUNK + row * CHUNK
                    every += tl.load(
                        its[:, None] + inner[None, :],
                        mask=there[:, None] & (column < depth)[None, :],
                        other=0.0,
                        cache_modifier=".cg",
                    )
                store_gradient(grad_q_row, every * scale, column, live_slot, depth)


@triton.jit
def store_gradient(grad_row, gradient, channel, live_slot, depth):
    """Stores some channels of the slots' gradient."""
    live = live_slot[:, None] & (channel < depth)[None, :]
    there = grad_row[:, None] + channel[None, :]
    tl.store(there, gradient.to(grad_row.dtype.element_ty), mask=live)
