"""The gradients of tokens, where one tile does not hold all slots, and what must be known before.

A token's softmax, and so its gradient, needs all slots. Where they are several tiles, passes before
give each token's largest logit (`ocvtp_kernels.ops.slot_attention.triton.compete`) and its mean gradient.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ocvtp_kernels.ops.slot_attention.triton.backward_tile import (
    attention_and_gradient,
    slot_deltas,
    slot_numbers,
)


@triton.jit
def deltas_kernel(
    updates,
    grad_updates,
    delta,
    rows,
    width,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`slot_deltas` of all slots of all images: float32 ``[B, K]``."""
    row = tl.program_id(0) * BLOCK_SLOTS + tl.arange(0, BLOCK_SLOTS)
    live = row < rows
    first = row.to(tl.int64) * width
    found = slot_deltas(updates + first, grad_updates + first, live, width, BLOCK_SLOTS, BLOCK_K)
    tl.store(delta + row, found, mask=live)


@triton.jit
def mean_gradients_kernel(
    q,
    k,
    v,
    slot_mask,
    softmax_stats,
    delta,
    mass,
    grad_updates,
    grad_mass,
    grad_attention,
    mean_gradients,
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
    MASK: tl.constexpr,
    GIVEN: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each token's ``sum over slots of A dA``, block by block: float32 ``[B, N]``."""
    blocks = tl.cdiv(num_tokens, BLOCK_TOKENS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    token = (tl.program_id(0) % blocks) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    live_token = token < num_tokens
    far_token = token.to(tl.int64)
    total = tl.zeros([BLOCK_TOKENS], tl.float32)
    for first_slot in range(0, num_slots, BLOCK_SLOTS):
        slot = first_slot + tl.arange(0, BLOCK_SLOTS)
        live_slot = slot < num_slots
        slot_place = image * num_slots + slot
        far_slot = slot.to(tl.int64)
        known, per_mass, of_mass = slot_numbers(
            delta, mass, grad_mass, slot_place, live_slot, mass_eps
        )
        a, gradient, per_mass = attention_and_gradient(
            q + image * q_image_stride + far_slot * q_row_stride,
            k + image * k_image_stride + far_token * k_row_stride,
            grad_updates + slot_place * width,
            v + image * v_image_stride + far_token * v_row_stride,
            live_slot,
            live_token,
            slot_mask + slot_place,
            softmax_stats + (image * num_tokens + token) * 2,
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
            True,
            GIVEN,
            WHOLE,
            BLOCK_SLOTS,
            BLOCK_TOKENS,
            BLOCK_K,
            PRECISION,
        )
        total += tl.sum(a * gradient, axis=0)
    tl.store(mean_gradients + image * num_tokens + token, total, mask=live_token)


@triton.jit
def tokens_backward_kernel(
    q,
    k,
    v,
    slot_mask,
    softmax_stats,
    delta,
    mass,
    grad_updates,
    grad_mass,
    grad_attention,
    mean_gradients,
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
    MASK: tl.constexpr,
    GIVEN: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of k and v, a block of tokens and a chunk of channels a program."""
    chunks = tl.cdiv(tl.maximum(depth, width), CHUNK)
    blocks = tl.cdiv(num_tokens, BLOCK_TOKENS)
    channel = (tl.program_id(0) % chunks) * CHUNK + tl.arange(0, CHUNK)
    token = ((tl.program_id(0) // chunks) % blocks) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    image = (tl.program_id(0) // (chunks * blocks)).to(tl.int64)
    live_token = token < num_tokens
    far_token = token.to(tl.int64)
    mean = tl.load(mean_gradients + image * num_tokens + token, mask=live_token, other=0.0)
    of_keys = tl.zeros([BLOCK_TOKENS, CHUNK], tl.float32)
    of_values = tl.zeros([BLOCK_TOKENS, CHUNK], tl.float32)
    for first_slot in range(0, num_slots, BLOCK_SLOTS):
        slot = first_slot + tl.arange(0, BLOCK_SLOTS)
        live_slot = slot < num_slots
        slot_place = image * num_slots + slot
        far_slot = slot.to(tl.int64)
        q_row = q + image * q_image_stride + far_slot * q_row_stride
        known, per_mass, of_mass = slot_numbers(
            delta, mass, grad_mass, slot_place, live_slot, mass_eps
        )
        a, gradient, per_mass = attention_and_gradient(
            q_row,
            k + image * k_image_stride + far_token * k_row_stride,
            grad_updates + slot_place * width,
            v + image * v_image_stride + far_token * v_row_stride,
            live_slot,
            live_token,
            slot_mask + slot_place,
            softmax_stats + (image * num_tokens + token) * 2,
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
            True,
            GIVEN,
            WHOLE,
            BLOCK_SLOTS,
            BLOCK_TOKENS,
            BLOCK_K,
            PRECISION,
        )
        queries = tl.load(
            q_row[:, None] + channel[None, :],
            mask=live_slot[:, None] & (channel < depth)[None, :],
            other=0.0,
        )
        logits = (a * (gradient - mean[None, :])).to(queries.dtype)
        of_keys = tl.dot(tl.trans(logits), queries, of_keys, input_precision=PRECISION)
        pulls = tl.load(
            grad_updates + slot_place[:, None] * width + channel[None, :],
            mask=live_slot[:, None] & (channel < width)[None, :],
            other=0.0,
        )
        shares = (a * per_mass[:, None]).to(pulls.dtype)
        of_values = tl.dot(tl.trans(shares), pulls, of_values, input_precision=PRECISION)
    token_place = image * num_tokens + token
    tl.store(
        grad_k + token_place[:, None] * depth + channel[None, :],
        (of_keys * scale).to(grad_k.dtype.element_ty),
        mask=live_token[:, None] & (channel < depth)[None, :],
    )
    tl.store(
        grad_v + token_place[:, None] * width + channel[None, :],
        of_values.to(grad_v.dtype.element_ty),
        mask=live_token[:, None] & (channel < width)[None, :],
    )
