"""One tile of logits, a block of slots by a block of tokens, and its softmax statistics."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def logits_tile(
    rows, masks, terms, depth, scale,
    CONSTANT: tl.constexpr, MASK: tl.constexpr,
    BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``scale q k^T + constant``.

    Args:
        rows, masks: of slots and tokens, pointers to the rows of q and k and what is no padding,
            ``[BLOCK_SLOTS]`` and ``[BLOCK_TOKENS]``.
        terms: (slot_constant, slot_mask), pointers ``[BLOCK_SLOTS]``, read if CONSTANT and MASK.
        EVEN_K: BLOCK_K divides ``depth`` and padding points to other rows (`clamp_index`), so that
            no load needs a mask.

    Returns:
        logits ``[BLOCK_SLOTS, BLOCK_TOKENS]``, -inf for slots that are padding or masked, which
        leaves them out of the softmax.
    """
    q_row, k_row = rows
    mask_slot, mask_token = masks
    slot_constant, slot_mask = terms
    if CONSTANT:
        constant = tl.load(slot_constant, mask=mask_slot, other=0.0)
    logits = tl.zeros([q_row.shape[0], k_row.shape[0]], tl.float32)
    for start in range(0, depth, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K)
        q_ptrs = q_row[:, None] + offs_k[None, :]
        k_ptrs = k_row[:, None] + offs_k[None, :]
        if EVEN_K:
            q = tl.load(q_ptrs)
            k = tl.load(k_ptrs)
        else:
            mask_k = (offs_k < depth)[None, :]
            q = tl.load(q_ptrs, mask=mask_slot[:, None] & mask_k, other=0.0)
            k = tl.load(k_ptrs, mask=mask_token[:, None] & mask_k, other=0.0)
        logits = tl.dot(q, tl.trans(k), logits, input_precision=PRECISION)
    logits *= scale
    if CONSTANT:
        logits += constant[:, None]
    in_softmax = mask_slot
    if MASK:
        in_softmax &= tl.load(slot_mask, mask=mask_slot, other=0) != 0
    return tl.where(in_softmax[:, None], logits, float("-inf"))


@triton.jit
def clamp_index(index, count):
    """The index as int64; padding gets the index of the last row."""
    return tl.minimum(index, count - 1).to(tl.int64)


@triton.jit
def softmax_stats_of(logits):
    """Softmax statistics of each token: its largest logit, and the sum over the other slots.

    With rest_sum the sum of ``exp(x - row_max)`` over all slots but the largest, the softmax over
    slots is ``exp(x - row_max) / (1 + rest_sum)`` and its logarithm
    ``(x - row_max) - log1p(rest_sum)``, which resolves an attention of almost 1 or 0.

    Args:
        logits: ``[BLOCK_SLOTS, BLOCK_TOKENS]``.

    Returns:
        row_max and rest_sum, ``[BLOCK_TOKENS]``.
    """
    # NaN logits are excluded from the maximum and kept in the sum.
    no_nan = tl.where(logits == logits, logits, float("-inf"))
    row_max, argmax = tl.max(no_nan, axis=0, return_indices=True)
    is_max = tl.arange(0, logits.shape[0])[:, None] == argmax[None, :]
    # -inf where every slot is masked or NaN, and -inf - -inf would be NaN.
    shift = tl.where(row_max == float("-inf"), 0.0, row_max)
    rest = tl.where(is_max, 0.0, tl.exp(logits - shift[None, :]))
    return row_max, tl.sum(rest, axis=0)


@triton.jit
def join_softmax_stats(row_max, rest_sum, block_max, block_rest):
    """Softmax statistics over the slots so far and a block more, and whether its maximum leads."""
    is_larger = block_max > row_max
    low = tl.where(is_larger, row_max, block_max)
    high = tl.where(is_larger, block_max, row_max)
    # The smaller maximum and its rest join the rest of the larger one.
    rescale = tl.where(low == float("-inf"), 0.0, tl.exp(low - high))
    low_rest = tl.where(is_larger, rest_sum, block_rest)
    rest_sum = tl.where(is_larger, block_rest, rest_sum) + rescale * (1.0 + low_rest)
    return high, rest_sum, is_larger


@triton.jit
def load_softmax_stats(softmax_stats, mask_token):
    """row_max and rest_sum at pointers ``[BLOCK_TOKENS]`` into `softmax_stats_kernel`'s output."""
    row_max = tl.load(softmax_stats, mask=mask_token, other=0.0)
    return row_max, tl.load(softmax_stats + 1, mask=mask_token, other=0.0)
