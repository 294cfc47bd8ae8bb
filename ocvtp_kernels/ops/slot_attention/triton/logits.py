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
    CONSTANT: tl.constexpr,
    MASK: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``scale q k^T + constant``.

    Args:
        q_row, k_row: pointers to the rows, ``[BLOCK_SLOTS]`` and ``[BLOCK_TOKENS]``.
        slot_constant, slot_mask: pointers ``[BLOCK_SLOTS]``, read if CONSTANT and MASK.
        EVEN_K: BLOCK_K divides ``depth`` and the pointers of padding are those of other rows, so
            that nothing is masked.

    Returns:
        logits ``[BLOCK_SLOTS, BLOCK_TOKENS]``, -inf for slots that are padding or
        masked, so that they take no part in the softmax.
    """
    if CONSTANT:
        constant = tl.load(slot_constant, mask=live_slot, other=0.0)
    logits = tl.zeros([BLOCK_SLOTS, BLOCK_TOKENS], tl.float32)
    for start in range(0, depth, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        q_place = q_row[:, None] + inner[None, :]
        k_place = k_row[:, None] + inner[None, :]
        if EVEN_K:
            q = tl.load(q_place)
            k = tl.load(k_place)
        else:
            live_inner = (inner < depth)[None, :]
            q = tl.load(q_place, mask=live_slot[:, None] & live_inner, other=0.0)
            k = tl.load(k_place, mask=live_token[:, None] & live_inner, other=0.0)
        logits = tl.dot(q, tl.trans(k), logits, input_precision=PRECISION)
    logits *= scale
    if CONSTANT:
        logits += constant[:, None]
    takes_part = live_slot
    if MASK:
        takes_part &= tl.load(slot_mask, mask=live_slot, other=0) != 0
    return tl.where(takes_part[:, None], logits, float("-inf"))


@triton.jit
def clamp_index(index, count):
    """The index, or, in the padding, that of the last row."""
    return tl.minimum(index, count - 1).to(tl.int64)


@triton.jit
def softmax_stats_of(logits):
    """Each token's largest logit m, and the sum of ``exp(x - m)`` over the other slots.

    The softmax over slots is ``exp(x - m) / (1 + others)``, its logarithm
    ``(x - m) - log1p(others)``: kept apart, the two resolve an attention of almost 1 or 0.

    Args:
        logits: ``[BLOCK_SLOTS, BLOCK_TOKENS]``.

    Returns:
        m and others, ``[BLOCK_TOKENS]``.
    """
    # A NaN leads nothing, but stays in the sum.
    numbers = tl.where(logits == logits, logits, float("-inf"))
    top, leader = tl.max(numbers, axis=0, return_indices=True)
    is_leader = tl.arange(0, logits.shape[0])[:, None] == leader[None, :]
    # Where every slot is masked, or NaN, there is no top to take off.
    shift = tl.where(top == float("-inf"), 0.0, top)
    others = tl.where(is_leader, 0.0, tl.exp(logits - shift[None, :]))
    return top, tl.sum(others, axis=0)
