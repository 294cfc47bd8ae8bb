"""One tile of the attention and of its gradient: where every kernel of the gradients begins.

The attention is computed again, and the formulas are those of `ocvtp_kernels.ops.slot_attention.gradients`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ocvtp_kernels.ops.slot_attention.triton.logits import logits_tile, softmax_stats_of


@triton.jit
def slot_deltas(
    updates_row,
    grad_row,
    live_slot,
    width,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``U . dU`` of each slot ``[BLOCK_SLOTS]``: what a slot's weights, summing to a constant, share."""
    delta = tl.zeros([BLOCK_SLOTS], tl.float32)
    for start in range(0, width, BLOCK_K):
        channel = start + tl.arange(0, BLOCK_K)
        live = live_slot[:, None] & (channel < width)[None, :]
        u = tl.load(updates_row[:, None] + channel[None, :], mask=live, other=0.0).to(tl.float32)
        g = tl.load(grad_row[:, None] + channel[None, :], mask=live, other=0.0).to(tl.float32)
        delta += tl.sum(u * g, axis=1)
    return delta


@triton.jit
def attention_and_gradient(
    q_row,
    k_row,
    grad_row,
    v_row,
    live_slot,
    live_token,
    slot_mask,
    softmax_stats,
    given_row,
    given_column,
    delta,
    per_mass,
    grad_mass,
    depth,
    width,
    scale,
    mass_eps,
    MASK: tl.constexpr,
    SOFTMAX_STATS: tl.constexpr,
    GIVEN: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The attention of a block of slots on a block of tokens, and its gradient.

    Args:
        q_row, k_row, grad_row, v_row: pointers to the rows of q, k, the updates' gradient and v.
        slot_mask: pointers ``[BLOCK_SLOTS]``, read if MASK.
        softmax_stats: pointers ``[BLOCK_TOKENS]``, read if SOFTMAX_STATS, else the block holds all slots.
        given_row, given_column: pointers ``[BLOCK_SLOTS]`` to the rows of the attention's own gradient,
            and offsets ``[BLOCK_TOKENS]`` in them, used if GIVEN.
        delta, per_mass, grad_mass: ``[BLOCK_SLOTS]``, `slot_deltas`, ``1 / (mass + eps)``, the mass'.
        WHOLE: the block holds all tokens, so their sums are taken here: of very few tokens the
            updates and v differ by less than the updates were rounded.

    Returns:
        both ``[BLOCK_SLOTS, BLOCK_TOKENS]``, zero in the padding, and ``1 / (mass + eps)`` ``[BLOCK_SLOTS]``.
    """
    logits = logits_tile(
        q_row,
        k_row,
        live_slot,
        live_token,
        q_row,
        slot_mask,
        depth,
        scale,
        False,
        MASK,
        BLOCK_SLOTS,
        BLOCK_TOKENS,
        BLOCK_K,
        False,
        PRECISION,
    )
    if SOFTMAX_STATS:
        top = tl.load(softmax_stats, mask=live_token, other=0.0)
        others = tl.load(softmax_stats + 1, mask=live_token, other=0.0)
    else:
        top, others = softmax_stats_of(logits)
    live = live_slot[:, None] & live_token[None, :]
    a = tl.div_rn(tl.exp(logits - top[None, :]), (1.0 + others)[None, :])
    a = tl.where(live, a, 0.0)
    weights = logits_tile(
        grad_row,
        v_row,
        live_slot,
        live_token,
        grad_row,
        slot_mask,
        width,
        1.0,
        False,
        False,
        BLOCK_SLOTS,
        BLOCK_TOKENS,
        BLOCK_K,
        False,
        PRECISION,
    )
    if WHOLE:
        per_mass = tl.div_rn(tl.full(delta.shape, 1.0, tl.float32), tl.sum(a, axis=1) + mass_eps)
        shares = a * per_mass[:, None]
        delta = tl.sum(tl.where(live, shares * weights, 0.0), axis=1)
    gradient = (weights - delta[:, None]) * per_mass[:, None] + grad_mass[:, None]
    if GIVEN:
        given = given_row[:, None] + given_column[None, :]
        gradient += tl.load(given, mask=live, other=0.0).to(tl.float32)
    return a, tl.where(live, gradient, 0.0), per_mass


@triton.jit
def slot_numbers(delta, mass, grad_mass, slot_place, live_slot, mass_eps):
    """A block's stored deltas, ``1 / (mass + mass_eps)`` and gradient of the mass ``[BLOCK_SLOTS]``."""
    known = tl.load(delta + slot_place, mask=live_slot, other=0.0)
    m = tl.load(mass + slot_place, mask=live_slot, other=1.0).to(tl.float32)
    g = tl.load(grad_mass + slot_place, mask=live_slot, other=0.0).to(tl.float32)
    return known, tl.div_rn(tl.full(m.shape, 1.0, tl.float32), m + mass_eps), g
