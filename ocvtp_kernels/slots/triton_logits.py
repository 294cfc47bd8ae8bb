"""One tile of logits, all slots of a block by a block of tokens: where every slot kernel begins."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def logits_tile(
    q_row,
    k_row,
    live_slot,
    live_token,
    slot_constant,
    slot_mask,
    depth,
    scale,
    eps,
    NORM: tl.constexpr,
    CONSTANT: tl.constexpr,
    MASK: tl.constexpr,
    SLOTS: tl.constexpr,
    TOKENS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``scale q k^T + constant``, and what turns the tokens into their LayerNorm.

    Args:
        q_row, k_row: pointers to the rows, ``[SLOTS]`` and ``[TOKENS]``.
        slot_constant, slot_mask: pointers ``[SLOTS]``, read if CONSTANT and MASK.
        NORM: k is LN(k), un-affined, and q has rows that sum to zero; as in
            `ocvtp_kernels.linear.triton_forward` the deviation is summed on the way.

    Returns:
        logits ``[SLOTS, TOKENS]``, -inf for slots that are padding or masked, so that they take no
        part in the softmax; each token's mean and 1 / deviation ``[TOKENS]``, 0 and 1 without NORM.
    """
    mean = tl.zeros([TOKENS], tl.float32)
    scale_token = tl.full([TOKENS], 1.0, tl.float32)
    if NORM:
        inner = tl.arange(0, DEPTH)
        live = live_token[:, None] & (inner < depth)[None, :]
        first = tl.load(k_row[:, None] + inner[None, :], mask=live, other=0.0).to(tl.float32)
        pivot = tl.sum(first, axis=1) / tl.minimum(depth, DEPTH)
        total = tl.zeros([TOKENS], tl.float32)
        squares = tl.zeros([TOKENS], tl.float32)
    logits = tl.zeros([SLOTS, TOKENS], tl.float32)
    for start in range(0, depth, DEPTH):
        inner = start + tl.arange(0, DEPTH)
        live_inner = inner < depth
        q = tl.load(
            q_row[:, None] + inner[None, :],
            mask=live_slot[:, None] & live_inner[None, :],
            other=0.0,
        )
        live = live_token[:, None] & live_inner[None, :]
        k = tl.load(k_row[:, None] + inner[None, :], mask=live, other=0.0)
        if NORM:
            shifted = tl.where(live, k.to(tl.float32) - pivot[:, None], 0.0)
            total += tl.sum(shifted, axis=1)
            squares += tl.sum(shifted * shifted, axis=1)
            k = shifted.to(k.dtype)
        logits = tl.dot(q, tl.trans(k), logits, input_precision=PRECISION)
    if NORM:
        mean = total / depth
        variance = tl.maximum(squares / depth - mean * mean, 0.0)
        mean += pivot
        scale_token = 1.0 / tl.sqrt_rn(variance + eps)
        logits *= scale_token[None, :]
    else:
        logits *= scale
    if CONSTANT:
        logits += tl.load(slot_constant, mask=live_slot, other=0.0)[:, None]
    takes_part = live_slot
    if MASK:
        takes_part &= tl.load(slot_mask, mask=live_slot, other=0) != 0
    return tl.where(takes_part[:, None], logits, float("-inf")), mean, scale_token


@triton.jit
def standing(logits, SLOTS: tl.constexpr):
    """Each token's largest logit m, and the sum of ``exp(x - m)`` over the other slots.

    The softmax over slots is ``exp(x - m) / (1 + others)``, its logarithm
    ``(x - m) - log1p(others)``: kept apart, the two resolve an attention of almost 1 or 0.

    Args:
        logits: ``[SLOTS, TOKENS]``.

    Returns:
        m and others, ``[TOKENS]``.
    """
    # A NaN leads nothing, but stays in the sum.
    numbers = tl.where(logits == logits, logits, float("-inf"))
    top, leader = tl.max(numbers, axis=0, return_indices=True)
    is_leader = tl.arange(0, SLOTS)[:, None] == leader[None, :]
    # Where every slot is masked, or NaN, there is no top to take off.
    shift = tl.where(top == float("-inf"), 0.0, top)
    others = tl.where(is_leader, 0.0, tl.exp(logits - shift[None, :]))
    return top, tl.sum(others, axis=0)
