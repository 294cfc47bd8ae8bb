"""Slot attention forward: softmax over slots and weighted mean over tokens, in one pass.

One tile holds up to `ONE_TILE` slots, and so a token's whole softmax. With more slots, a first pass
stores the softmax statistics of each token (`softmax_stats_kernel`), and each block of slots is a
program of its own.

Batch-invariant: the tokens form groups that depend on N alone. The sum of each group starts at
zero, and groups are added in order, either by the one program that takes them all or, where each
program takes one (split N), by the last of them to finish.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ocvtp_kernels.ops.slot_attention.triton.logits import (
    clamp_index,
    join_softmax_stats,
    load_softmax_stats,
    logits_tile,
    softmax_stats_of,
)
from ocvtp_kernels.triton_common.dependent import wait_for_launches_before
from ocvtp_kernels.triton_common.programs import block_of_image


@triton.jit
def softmax_stats_kernel(
    q, k, slot_constant, slot_mask, softmax_stats,
    num_slots, num_tokens, depth, scale,
    q_image_stride, q_row_stride, k_image_stride, k_row_stride,
    CONSTANT: tl.constexpr, MASK: tl.constexpr, BLOCK_SLOTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`softmax_stats_of` all slots, one block after the other: float32 ``[B, N, 2]``."""
    wait_for_launches_before(PDL)
    image, token, mask_token = block_of_image(num_tokens, BLOCK_TOKENS)
    k_row = k + image * k_image_stride + clamp_index(token, num_tokens) * k_row_stride
    row_max = tl.full([BLOCK_TOKENS], float("-inf"), tl.float32)
    rest_sum = tl.zeros([BLOCK_TOKENS], tl.float32)
    for first_slot in range(0, num_slots, BLOCK_SLOTS):
        slot = first_slot + tl.arange(0, BLOCK_SLOTS)
        mask_slot = slot < num_slots
        offs_slot = image * num_slots + slot
        q_row = q + image * q_image_stride + clamp_index(slot, num_slots) * q_row_stride
        rows, masks = (q_row, k_row), (mask_slot, mask_token)
        terms = (slot_constant + offs_slot, slot_mask + offs_slot)
        logits = logits_tile(
            rows, masks, terms, depth, scale, CONSTANT, MASK, BLOCK_K, EVEN_K, PRECISION
        )
        block_max, block_rest = softmax_stats_of(logits)
        row_max, rest_sum, _ = join_softmax_stats(row_max, rest_sum, block_max, block_rest)
    ptrs = softmax_stats + (image * num_tokens + token) * 2
    tl.store(ptrs, row_max, mask=mask_token)
    tl.store(ptrs + 1, rest_sum, mask=mask_token)


@triton.jit(do_not_specialize=["num_groups", "groups_per_program", "blocks_per_group"])
def slot_attention_fwd_kernel(
    q, k, v, slot_constant, slot_mask, softmax_stats, partial_acc, partial_mass, semaphore,
    updates, mass, attention,
    num_slots, num_tokens, depth, width, scale, mass_eps,
    q_image_stride, q_row_stride, k_image_stride, k_row_stride, v_image_stride, v_row_stride,
    num_groups, groups_per_program, blocks_per_group,
    CONSTANT: tl.constexpr, MASK: tl.constexpr, SOFTMAX_STATS: tl.constexpr,
    ATTENTION: tl.constexpr, BLOCK_SLOTS: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_D: tl.constexpr, MAX_SPLITS: tl.constexpr,
    BLOCK_D_SUM: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Updates ``(A v) / (sum_n A + mass_eps)`` ``[B, K, E]`` and mass ``sum_n A`` ``[B, K]``.

    A program takes one output tile (an image, a block of slots and a block of v's channels), and
    one group of tokens, or all groups. MAX_SPLITS bounds the programs per output tile; 0 means one.
    """
    wait_for_launches_before(PDL)
    # A wide tile has no registers to load the values early, and is stored one half after the other.
    EARLY: tl.constexpr = BLOCK_D <= 128
    EPILOGUE_PARTS: tl.constexpr = 1 if EARLY else 2
    program = tl.program_id(0)
    num_splits = tl.cdiv(num_groups, groups_per_program)
    channel_blocks = tl.cdiv(width, BLOCK_D)
    slot_blocks = tl.cdiv(num_slots, BLOCK_SLOTS)
    output_tile = program // num_splits
    split_id = program % num_splits
    channel_block = output_tile % channel_blocks
    slot_block = (output_tile // channel_blocks) % slot_blocks
    image = (output_tile // (channel_blocks * slot_blocks)).to(tl.int64)
    slot = slot_block * BLOCK_SLOTS + tl.arange(0, BLOCK_SLOTS)
    mask_slot = slot < num_slots
    offs_slot = image * num_slots + slot
    q_row = q + image * q_image_stride + clamp_index(slot, num_slots) * q_row_stride
    first_channel = channel_block * BLOCK_D
    channel = first_channel + tl.arange(0, BLOCK_D)
    mask_channel = channel < width
    acc = tl.zeros([BLOCK_SLOTS, BLOCK_D], tl.float32)
    acc_mass = tl.zeros([BLOCK_SLOTS], tl.float32)
    for group in range(split_id * groups_per_program, (split_id + 1) * groups_per_program):
        group_acc = tl.zeros([BLOCK_SLOTS, BLOCK_D], tl.float32)
        group_mass = tl.zeros([BLOCK_SLOTS], tl.float32)
        for block in range(group * blocks_per_group, (group + 1) * blocks_per_group):
            token = block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
            mask_token = token < num_tokens
            # Loaded before the logits, to hide the latency, where registers allow.
            if SOFTMAX_STATS:
                stats = softmax_stats + (image * num_tokens + token) * 2
                row_max, rest_sum = load_softmax_stats(stats, mask_token)
            if EARLY:
                v_row = v + image * v_image_stride + token.to(tl.int64) * v_row_stride
                values = load_values(v_row, channel, mask_token, mask_channel)
            k_row = k + image * k_image_stride + clamp_index(token, num_tokens) * k_row_stride
            rows, masks = (q_row, k_row), (mask_slot, mask_token)
            terms = (slot_constant + offs_slot, slot_mask + offs_slot)
            logits = logits_tile(
                rows, masks, terms, depth, scale, CONSTANT, MASK, BLOCK_K, EVEN_K, PRECISION
            )
            if not SOFTMAX_STATS:
                row_max, rest_sum = softmax_stats_of(logits)
            a = tl.exp(logits - row_max[None, :])
            if k.dtype.element_ty == tl.float32:
                a = tl.div_rn(a, (1.0 + rest_sum)[None, :])
            else:
                # One division per token; its error is far below that of the half precision product.
                inv_sum = 1.0 / (1.0 + rest_sum)
                a *= inv_sum[None, :]
            a = tl.where(mask_slot[:, None] & mask_token[None, :], a, 0.0)
            if ATTENTION:
                if channel_block == 0:
                    tl.store(
                        attention + offs_slot[:, None] * num_tokens + token[None, :],
                        a.to(attention.dtype.element_ty),
                        mask=mask_slot[:, None] & mask_token[None, :],
                    )
            if not EARLY:
                v_row = v + image * v_image_stride + token.to(tl.int64) * v_row_stride
                values = load_values(v_row, channel, mask_token, mask_channel)
            group_mass += tl.sum(a, axis=1)
            group_acc = tl.dot(a.to(values.dtype), values, group_acc, input_precision=PRECISION)
        if MAX_SPLITS == 0:
            # The where keeps the compiler from starting the group's sum at `acc`, not at zero.
            acc += tl.where(mask_slot[:, None], group_acc, 0.0)
            acc_mass += group_mass
        else:
            # The program has one group, and no registers for a second accumulator.
            acc = group_acc
            acc_mass = group_mass

    updates_row = updates + offs_slot * width
    row = tl.arange(0, BLOCK_SLOTS)
    first_split = output_tile.to(tl.int64) * num_splits
    this_split = first_split + split_id
    accs = (acc, acc)
    if EPILOGUE_PARTS == 2:
        accs = tl.split(tl.permute(tl.reshape(acc, (BLOCK_SLOTS, 2, BLOCK_D // 2)), (0, 2, 1)))
    for half in tl.static_range(EPILOGUE_PARTS):
        offs_d = half * (BLOCK_D // EPILOGUE_PARTS) + tl.arange(0, BLOCK_D // EPILOGUE_PARTS)
        out_channel = first_channel + offs_d
        if MAX_SPLITS == 0:
            store_mean(updates_row, accs[half], acc_mass, out_channel, mask_slot, width, mass_eps)
        else:
            ptrs = partial_acc + this_split * BLOCK_SLOTS * BLOCK_D
            ptrs = ptrs + row[:, None] * BLOCK_D + offs_d[None, :]
            tl.store(ptrs, accs[half], mask=mask_slot[:, None] & (out_channel < width)[None, :])
    if MAX_SPLITS == 0:
        if channel_block == 0:
            tl.store(mass + offs_slot, acc_mass.to(mass.dtype.element_ty), mask=mask_slot)
    else:
        tl.store(partial_mass + this_split * BLOCK_SLOTS + row, acc_mass, mask=mask_slot)
        # All threads have stored before the one that increments the semaphore.
        tl.debug_barrier()
        if tl.atomic_add(semaphore + output_tile, 1, sem="acq_rel") + 1 == num_splits:
            # Zero again for the next launch.
            tl.store(semaphore + output_tile, 0)
            # The last program adds up all splits, its own too, as `sum_of_splits` does.
            sum_mass = tl.zeros([BLOCK_SLOTS], tl.float32)
            for other in tl.static_range(MAX_SPLITS):
                mask_split = mask_slot & (row < tl.where(num_splits > other, BLOCK_SLOTS, 0))
                mass_ptrs = partial_mass + (first_split + other) * BLOCK_SLOTS + row
                sum_mass += tl.load(mass_ptrs, mask=mask_split, other=0.0, cache_modifier=".cg")
            for start in range(0, BLOCK_D, BLOCK_D_SUM):
                offs_sum = start + tl.arange(0, BLOCK_D_SUM)
                sum_acc = sum_of_splits(
                    partial_acc, first_split, num_splits, mask_slot, offs_sum, first_channel, width,
                    MAX_SPLITS, BLOCK_D,
                )  # fmt: skip
                column = first_channel + offs_sum
                store_mean(updates_row, sum_acc, sum_mass, column, mask_slot, width, mass_eps)
            if channel_block == 0:
                tl.store(mass + offs_slot, sum_mass.to(mass.dtype.element_ty), mask=mask_slot)


@triton.jit
def sum_of_splits(
    partial_acc, first_split, num_splits, mask_slot, offs_d, first_channel, width,
    MAX_SPLITS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The splits' partial sums of the channels ``offs_d`` of a tile, added up in order.

    All loads are in flight together, and bypass L1, which does not see other programs' stores.
    """
    BLOCK_SLOTS: tl.constexpr = mask_slot.shape[0]
    row = tl.arange(0, BLOCK_SLOTS)
    sum_acc = tl.zeros([BLOCK_SLOTS, offs_d.shape[0]], tl.float32)
    for split in tl.static_range(MAX_SPLITS):
        mask_split = mask_slot & (row < tl.where(num_splits > split, BLOCK_SLOTS, 0))
        acc_row = partial_acc + (first_split + split) * BLOCK_SLOTS * BLOCK_D + row * BLOCK_D
        mask = mask_split[:, None] & (first_channel + offs_d < width)[None, :]
        ptrs = acc_row[:, None] + offs_d[None, :]
        sum_acc += tl.load(ptrs, mask=mask, other=0.0, cache_modifier=".cg")
    return sum_acc


@triton.jit
def load_values(v_row, channel, mask_token, mask_channel):
    """A block of the values ``[BLOCK_TOKENS, BLOCK_D]``, zero in the padding."""
    mask = mask_token[:, None] & mask_channel[None, :]
    return tl.load(v_row[:, None] + channel[None, :], mask=mask, other=0.0)


@triton.jit
def store_mean(updates_row, acc, acc_mass, channel, mask_slot, width, mass_eps):
    """Stores ``acc / (acc_mass + mass_eps)``, a block of channels of the slots' updates."""
    mean = tl.div_rn(acc, (acc_mass + mass_eps)[:, None])
    mask = mask_slot[:, None] & (channel < width)[None, :]
    ptrs = updates_row[:, None] + channel[None, :]
    tl.store(ptrs, mean.to(updates_row.dtype.element_ty), mask=mask)
