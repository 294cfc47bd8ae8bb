"""Slot attention backward: gradients of the slots and of the tokens.

Where one tile holds all slots, one kernel computes the gradients of q, k and v. With more slots a
token's softmax, and so its gradient, spans several tiles: passes before store each token's softmax
statistics and mean gradient, and a kernel of its own computes the gradients of k and v.

The attention is recomputed, and nothing of its size is stored. The formulas are those of
`ocvtp_kernels.ops.slot_attention_backward`. Batch-invariant by groups of tokens, as the forward
(`ocvtp_kernels.ops.slot_attention.triton.forward_kernels`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from ocvtp_kernels.ops.slot_attention.triton.forward_kernels import sum_of_splits
from ocvtp_kernels.ops.slot_attention.triton.logits import (
    load_softmax_stats,
    logits_tile,
    softmax_stats_of,
)
from ocvtp_kernels.triton_common.programs import block_of_image


@triton.jit
def slot_delta(updates_row, grad_row, mask_slot, width, BLOCK_K: tl.constexpr):
    """``delta = U . dU`` ``[BLOCK_SLOTS]``: what the gradient of normalised weights subtracts."""
    delta = tl.zeros(mask_slot.shape, tl.float32)
    for start in range(0, width, BLOCK_K):
        channel = start + tl.arange(0, BLOCK_K)
        mask = mask_slot[:, None] & (channel < width)[None, :]
        u = tl.load(updates_row[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        g = tl.load(grad_row[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        delta += tl.sum(u * g, axis=1)
    return delta


@triton.jit
def attention_and_gradient(
    rows, masks, slot_mask, softmax_stats, dattn, slot_terms, sizes, scale, mass_eps,
    MASK: tl.constexpr, SOFTMAX_STATS: tl.constexpr, HAS_DATTN: tl.constexpr,
    SINGLE_BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The attention of a block of slots on a block of tokens, and its gradient.

    Args:
        rows: pointers to the rows of q, k, the updates' gradient and v.
        masks: of slots and tokens, what is no padding.
        slot_mask: pointers ``[BLOCK_SLOTS]``, read if MASK.
        softmax_stats: pointers ``[BLOCK_TOKENS]``, read if SOFTMAX_STATS; else the block of slots
            holds all slots.
        dattn: pointers ``[BLOCK_SLOTS]`` to the rows of the external gradient of the attention, and
            offsets ``[BLOCK_TOKENS]`` in them, read if HAS_DATTN.
        slot_terms: delta, inv_mass and grad_mass ``[BLOCK_SLOTS]``: `slot_delta`,
            ``1 / (mass + eps)`` and the gradient of the mass.
        sizes: (depth, width).
        SINGLE_BLOCK: the block of tokens holds all tokens, and mass and delta are computed here:
            with very few tokens updates and v differ by less than the rounding of the updates.

    Returns:
        attention and gradient ``[BLOCK_SLOTS, BLOCK_TOKENS]``, zero in the padding, and
        ``1 / (mass + eps)`` ``[BLOCK_SLOTS]``.
    """
    q_row, k_row, grad_row, v_row = rows
    mask_slot, mask_token = masks
    delta, inv_mass, grad_mass = slot_terms
    depth, width = sizes
    terms = (q_row, slot_mask)
    logits = logits_tile(
        (q_row, k_row), masks, terms, depth, scale, False, MASK, BLOCK_K, False, PRECISION
    )
    if SOFTMAX_STATS:
        row_max, rest_sum = load_softmax_stats(softmax_stats, mask_token)
    else:
        row_max, rest_sum = softmax_stats_of(logits)
    mask = mask_slot[:, None] & mask_token[None, :]
    a = tl.div_rn(tl.exp(logits - row_max[None, :]), (1.0 + rest_sum)[None, :])
    a = tl.where(mask, a, 0.0)
    grad_weights = logits_tile(
        (grad_row, v_row), masks, terms, width, 1.0, False, False, BLOCK_K, False, PRECISION
    )
    if SINGLE_BLOCK:
        inv_mass = tl.div_rn(tl.full(delta.shape, 1.0, tl.float32), tl.sum(a, axis=1) + mass_eps)
        weights = a * inv_mass[:, None]
        delta = tl.sum(tl.where(mask, weights * grad_weights, 0.0), axis=1)
    gradient = (grad_weights - delta[:, None]) * inv_mass[:, None] + grad_mass[:, None]
    if HAS_DATTN:
        dattn_row, dattn_column = dattn
        dattn_ptrs = dattn_row[:, None] + dattn_column[None, :]
        gradient += tl.load(dattn_ptrs, mask=mask, other=0.0).to(tl.float32)
    return a, tl.where(mask, gradient, 0.0), inv_mass


@triton.jit
def load_slot_terms(slot_terms, offs_slot, mask_slot, mass_eps):
    """Stored delta, ``1 / (mass + mass_eps)`` and gradient of the mass ``[BLOCK_SLOTS]``."""
    delta, mass, grad_mass = slot_terms
    delta_slot = tl.load(delta + offs_slot, mask=mask_slot, other=0.0)
    m = tl.load(mass + offs_slot, mask=mask_slot, other=1.0).to(tl.float32)
    g = tl.load(grad_mass + offs_slot, mask=mask_slot, other=0.0).to(tl.float32)
    return delta_slot, tl.div_rn(tl.full(m.shape, 1.0, tl.float32), m + mass_eps), g


@triton.jit(do_not_specialize=["num_groups", "groups_per_program", "blocks_per_group"])
def slot_attention_bwd_kernel(
    q, k, v, slot_mask, softmax_stats, delta, mass, updates, grad_updates, grad_mass,
    grad_attention, mean_gradients, partial_acc, semaphore, grad_q, grad_k, grad_v,
    num_slots, num_tokens, depth, width, scale, mass_eps,
    q_image_stride, q_row_stride, k_image_stride, k_row_stride, v_image_stride, v_row_stride,
    dattn_image_stride, dattn_row_stride, dattn_column_stride,
    num_groups, groups_per_program, blocks_per_group,
    MASK: tl.constexpr, SOFTMAX_STATS: tl.constexpr, HAS_DATTN: tl.constexpr,
    SINGLE_BLOCK: tl.constexpr, BLOCK_SLOTS: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    BLOCK_K: tl.constexpr, ACC_IN_GLOBAL: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_D_STORE: tl.constexpr, MAX_SPLITS: tl.constexpr, BLOCK_D_SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of q ``[B, K, D]``; without SOFTMAX_STATS also of k and v.

    A program takes one output tile (an image, a block of slots and a block of channels), and one
    group of tokens, or all groups. dq is summed over tokens, in registers; dk and dv of a block of
    tokens are complete at once, as the tile holds all slots, and are stored in the loop.
    """
    num_splits = tl.cdiv(num_groups, groups_per_program)
    max_channels = depth if SOFTMAX_STATS else tl.maximum(depth, width)
    channel_blocks = tl.cdiv(max_channels, BLOCK_D)
    slot_blocks = tl.cdiv(num_slots, BLOCK_SLOTS)
    output_tile = tl.program_id(0) // num_splits
    split_id = tl.program_id(0) % num_splits
    slot = ((output_tile // channel_blocks) % slot_blocks) * BLOCK_SLOTS + tl.arange(0, BLOCK_SLOTS)
    image = (output_tile // (channel_blocks * slot_blocks)).to(tl.int64)
    first_channel = (output_tile % channel_blocks) * BLOCK_D
    channel = first_channel + tl.arange(0, BLOCK_D)
    mask_channel = channel < depth

    mask_slot = slot < num_slots
    offs_slot = image * num_slots + slot
    slot64 = slot.to(tl.int64)
    q_row = q + image * q_image_stride + slot64 * q_row_stride
    grad_row = grad_updates + offs_slot * width
    stored_terms = (delta, mass, grad_mass)
    delta_slot, inv_mass, dmass = load_slot_terms(stored_terms, offs_slot, mask_slot, mass_eps)
    if not SOFTMAX_STATS:
        updates_row = updates + offs_slot * width
        delta_slot = slot_delta(updates_row, grad_row, mask_slot, width, BLOCK_K)
    tile = tl.arange(0, BLOCK_SLOTS)[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    mask = mask_slot[:, None] & mask_channel[None, :]
    # A wide tile has no registers for two accumulators: the sum of the groups is kept in memory.
    acc_ptrs = partial_acc + output_tile.to(tl.int64) * BLOCK_SLOTS * BLOCK_D + tile
    acc = tl.zeros([BLOCK_SLOTS, BLOCK_D], tl.float32)
    for group in range(split_id * groups_per_program, (split_id + 1) * groups_per_program):
        group_acc = tl.zeros([BLOCK_SLOTS, BLOCK_D], tl.float32)
        for block in tl.range(
            group * blocks_per_group, (group + 1) * blocks_per_group, disable_licm=True
        ):
            token = block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
            mask_token = token < num_tokens
            token64 = token.to(tl.int64)
            offs_token = image * num_tokens + token
            k_row = k + image * k_image_stride + token64 * k_row_stride
            v_row = v + image * v_image_stride + token64 * v_row_stride
            slot_mask_ptrs = slot_mask + offs_slot
            stats = softmax_stats + offs_token * 2
            dattn_row = grad_attention + image * dattn_image_stride + slot64 * dattn_row_stride
            a, gradient, inv_mass = attention_and_gradient(
                (q_row, k_row, grad_row, v_row), (mask_slot, mask_token), slot_mask_ptrs,
                stats, (dattn_row, token64 * dattn_column_stride), (delta_slot, inv_mass, dmass),
                (depth, width), scale, mass_eps,
                MASK, SOFTMAX_STATS, HAS_DATTN, SINGLE_BLOCK, BLOCK_K, PRECISION,
            )  # fmt: skip
            if SOFTMAX_STATS:
                mean = tl.load(mean_gradients + offs_token, mask=mask_token, other=0.0)
            else:
                mean = tl.sum(a * gradient, axis=0)
            keys = tl.load(
                k_row[:, None] + channel[None, :],
                mask=mask_token[:, None] & mask_channel[None, :],
                other=0.0,
            )
            grad_logits = (a * (gradient - mean[None, :])).to(keys.dtype)
            group_acc = tl.dot(grad_logits, keys, group_acc, input_precision=PRECISION)
            if not SOFTMAX_STATS:
                grad_logits = tl.trans(grad_logits)
                weights = tl.trans((a * inv_mass[:, None]).to(grad_logits.dtype))
                # A few channels at a time, because dq's accumulators hold most registers.
                for start in range(0, BLOCK_D, BLOCK_D_STORE):
                    column = first_channel + start + tl.arange(0, BLOCK_D_STORE)
                    mask_column = mask_slot[:, None] & (column < depth)[None, :]
                    queries = tl.load(q_row[:, None] + column[None, :], mask=mask_column, other=0.0)
                    product = tl.dot(grad_logits, queries, input_precision=PRECISION)
                    tl.store(
                        grad_k + offs_token[:, None] * depth + column[None, :],
                        (product * scale).to(grad_k.dtype.element_ty),
                        mask=mask_token[:, None] & (column < depth)[None, :],
                    )
                    mask_column = mask_slot[:, None] & (column < width)[None, :]
                    grad = tl.load(grad_row[:, None] + column[None, :], mask=mask_column, other=0.0)
                    product = tl.dot(weights, grad, input_precision=PRECISION)
                    tl.store(
                        grad_v + offs_token[:, None] * width + column[None, :],
                        product.to(grad_v.dtype.element_ty),
                        mask=mask_token[:, None] & (column < width)[None, :],
                    )
        if ACC_IN_GLOBAL:
            acc = tl.load(acc_ptrs, mask=mask & (group > 0), other=0.0)
            tl.store(acc_ptrs, acc + group_acc, mask=mask)
        else:
            # The where keeps the compiler from starting the group's sum at `acc`, not at zero.
            acc += tl.where(mask_slot[:, None], group_acc, 0.0)

    if ACC_IN_GLOBAL:
        acc = tl.load(acc_ptrs, mask=mask, other=0.0)
    grad_q_row = grad_q + offs_slot * depth
    if MAX_SPLITS == 0:
        store_gradient(grad_q_row, acc * scale, channel, mask_slot, depth)
    else:
        first_split = output_tile.to(tl.int64) * num_splits
        this_split = first_split + split_id
        tl.store(partial_acc + this_split * BLOCK_SLOTS * BLOCK_D + tile, acc, mask=mask)
        # All threads have stored before the one that increments the semaphore.
        tl.debug_barrier()
        if tl.atomic_add(semaphore + output_tile, 1, sem="acq_rel") + 1 == num_splits:
            # The last program adds up all splits, its own too, in order.
            for start in range(0, BLOCK_D, BLOCK_D_SUM):
                offs_sum = start + tl.arange(0, BLOCK_D_SUM)
                column = first_channel + offs_sum
                sum_acc = sum_of_splits(
                    partial_acc, first_split, num_splits, mask_slot, offs_sum, first_channel, depth,
                    MAX_SPLITS, BLOCK_D,
                )  # fmt: skip
                store_gradient(grad_q_row, sum_acc * scale, column, mask_slot, depth)


@triton.jit
def store_gradient(grad_row, gradient, channel, mask_slot, depth):
    """Stores a block of channels of the slots' gradient."""
    mask = mask_slot[:, None] & (channel < depth)[None, :]
    ptrs = grad_row[:, None] + channel[None, :]
    tl.store(ptrs, gradient.to(grad_row.dtype.element_ty), mask=mask)


@triton.jit
def deltas_kernel(
    updates, grad_updates, delta,
    rows, width,
    BLOCK_SLOTS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`slot_delta` of all slots of all images: float32 ``[B, K]``."""
    row = tl.program_id(0) * BLOCK_SLOTS + tl.arange(0, BLOCK_SLOTS)
    mask = row < rows
    offs = row.to(tl.int64) * width
    value = slot_delta(updates + offs, grad_updates + offs, mask, width, BLOCK_K)
    tl.store(delta + row, value, mask=mask)


@triton.jit
def gradient_of_slots(
    image, slot, tokens, tensors, stored_terms, sizes, strides, scale, mass_eps,
    MASK: tl.constexpr, HAS_DATTN: tl.constexpr, SINGLE_BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`attention_and_gradient` of a block of slots, with stored softmax statistics.

    Args:
        tokens: a block of tokens, int64, and its mask.
        tensors: (q, k, v, slot_mask, softmax_stats, grad_updates, grad_attention).
        stored_terms: (delta, mass, grad_mass).
        sizes: (num_slots, num_tokens, depth, width).
        strides: of q, k and v (image, row), and of grad_attention (image, row, column).
    """
    q, k, v, slot_mask, softmax_stats, grad_updates, grad_attention = tensors
    num_slots, num_tokens, depth, width = sizes
    q_strides, k_strides, v_strides, dattn_strides = strides
    mask_slot = slot < num_slots
    offs_slot = image * num_slots + slot
    token, mask_token = tokens
    slot64 = slot.to(tl.int64)
    slot_terms = load_slot_terms(stored_terms, offs_slot, mask_slot, mass_eps)
    q_row = q + image * q_strides[0] + slot64 * q_strides[1]
    k_row = k + image * k_strides[0] + token * k_strides[1]
    grad_row = grad_updates + offs_slot * width
    v_row = v + image * v_strides[0] + token * v_strides[1]
    slot_mask_ptrs = slot_mask + offs_slot
    stats = softmax_stats + (image * num_tokens + token) * 2
    dattn_row = grad_attention + image * dattn_strides[0] + slot64 * dattn_strides[1]
    return attention_and_gradient(
        (q_row, k_row, grad_row, v_row), (mask_slot, mask_token), slot_mask_ptrs,
        stats, (dattn_row, token * dattn_strides[2]), slot_terms, (depth, width), scale, mass_eps,
        MASK, True, HAS_DATTN, SINGLE_BLOCK, BLOCK_K, PRECISION,
    )  # fmt: skip


@triton.jit
def mean_gradients_kernel(
    q, k, v, slot_mask, softmax_stats, delta, mass, grad_updates, grad_mass, grad_attention,
    mean_gradients,
    num_slots, num_tokens, depth, width, scale, mass_eps,
    q_image_stride, q_row_stride, k_image_stride, k_row_stride, v_image_stride, v_row_stride,
    dattn_image_stride, dattn_row_stride, dattn_column_stride,
    MASK: tl.constexpr, HAS_DATTN: tl.constexpr, SINGLE_BLOCK: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``sum over slots of A dA`` of each token: float32 ``[B, N]``."""
    image, token, mask_token = block_of_image(num_tokens, BLOCK_TOKENS)
    tokens = (token.to(tl.int64), mask_token)
    tensors = (q, k, v, slot_mask, softmax_stats, grad_updates, grad_attention)
    stored_terms = (delta, mass, grad_mass)
    sizes = (num_slots, num_tokens, depth, width)
    strides = (
        (q_image_stride, q_row_stride),
        (k_image_stride, k_row_stride),
        (v_image_stride, v_row_stride),
        (dattn_image_stride, dattn_row_stride, dattn_column_stride),
    )
    acc = tl.zeros([BLOCK_TOKENS], tl.float32)
    for first_slot in range(0, num_slots, BLOCK_SLOTS):
        slot = first_slot + tl.arange(0, BLOCK_SLOTS)
        a, gradient, _ = gradient_of_slots(
            image, slot, tokens, tensors, stored_terms, sizes, strides, scale, mass_eps,
            MASK, HAS_DATTN, SINGLE_BLOCK, BLOCK_K, PRECISION,
        )  # fmt: skip
        acc += tl.sum(a * gradient, axis=0)
    tl.store(mean_gradients + image * num_tokens + token, acc, mask=mask_token)


@triton.jit
def tokens_backward_kernel(
    q, k, v, slot_mask, softmax_stats, delta, mass, grad_updates, grad_mass, grad_attention,
    mean_gradients, grad_k, grad_v,
    num_slots, num_tokens, depth, width, scale, mass_eps,
    q_image_stride, q_row_stride, k_image_stride, k_row_stride, v_image_stride, v_row_stride,
    dattn_image_stride, dattn_row_stride, dattn_column_stride,
    MASK: tl.constexpr, HAS_DATTN: tl.constexpr, SINGLE_BLOCK: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of k and v; a program takes one block of tokens and one block of channels."""
    channel_blocks = tl.cdiv(tl.maximum(depth, width), BLOCK_D)
    token_blocks = tl.cdiv(num_tokens, BLOCK_TOKENS)
    channel = (tl.program_id(0) % channel_blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    token_block = (tl.program_id(0) // channel_blocks) % token_blocks
    token = token_block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    image = (tl.program_id(0) // (channel_blocks * token_blocks)).to(tl.int64)
    mask_token = token < num_tokens
    tokens = (token.to(tl.int64), mask_token)
    tensors = (q, k, v, slot_mask, softmax_stats, grad_updates, grad_attention)
    stored_terms = (delta, mass, grad_mass)
    sizes = (num_slots, num_tokens, depth, width)
    strides = (
        (q_image_stride, q_row_stride),
        (k_image_stride, k_row_stride),
        (v_image_stride, v_row_stride),
        (dattn_image_stride, dattn_row_stride, dattn_column_stride),
    )
    mean = tl.load(mean_gradients + image * num_tokens + token, mask=mask_token, other=0.0)
    acc_k = tl.zeros([BLOCK_TOKENS, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_TOKENS, BLOCK_D], tl.float32)
    for first_slot in range(0, num_slots, BLOCK_SLOTS):
        slot = first_slot + tl.arange(0, BLOCK_SLOTS)
        mask_slot = slot < num_slots
        offs_slot = image * num_slots + slot
        q_row = q + image * q_image_stride + slot.to(tl.int64) * q_row_stride
        a, gradient, inv_mass = gradient_of_slots(
            image, slot, tokens, tensors, stored_terms, sizes, strides, scale, mass_eps,
            MASK, HAS_DATTN, SINGLE_BLOCK, BLOCK_K, PRECISION,
        )  # fmt: skip
        queries = tl.load(
            q_row[:, None] + channel[None, :],
            mask=mask_slot[:, None] & (channel < depth)[None, :],
            other=0.0,
        )
        grad_logits = (a * (gradient - mean[None, :])).to(queries.dtype)
        acc_k = tl.dot(tl.trans(grad_logits), queries, acc_k, input_precision=PRECISION)
        grad = tl.load(
            grad_updates + offs_slot[:, None] * width + channel[None, :],
            mask=mask_slot[:, None] & (channel < width)[None, :],
            other=0.0,
        )
        weights = (a * inv_mass[:, None]).to(grad.dtype)
        acc_v = tl.dot(tl.trans(weights), grad, acc_v, input_precision=PRECISION)
    offs_token = image * num_tokens + token
    tl.store(
        grad_k + offs_token[:, None] * depth + channel[None, :],
        (acc_k * scale).to(grad_k.dtype.element_ty),
        mask=mask_token[:, None] & (channel < depth)[None, :],
    )
    tl.store(
        grad_v + offs_token[:, None] * width + channel[None, :],
        acc_v.to(grad_v.dtype.element_ty),
        mask=mask_token[:, None] & (channel < width)[None, :],
    )
