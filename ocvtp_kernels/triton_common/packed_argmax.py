"""A score and a token's id in one integer, so that argmax is a maximum.

``ordered(score) * 2^31 + (2^31 - 1 - id)`` orders as the reference does: higher score first, then
lower id. The result does not depend on the order in which maxima are taken.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ocvtp_kernels.triton_common.maths import ordered


@triton.jit
def pack_argmax(score, token):
    """Score float32 and id as one int64 >= 0."""
    return ordered(score) * 2147483648 + (2147483647 - token)


@triton.jit
def unpack_token(packed):
    """The id that `pack_argmax` packed."""
    return 2147483647 - (packed % 2147483648)


@triton.jit
def unpack_score(packed):
    """The score that `pack_argmax` packed, float32."""
    order = packed // 2147483648 - 2147483648
    bits = tl.where(order < 0, -order - 2147483649, order)
    return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def reduce_packed(
    packed_topk, slot, mask_slot,
    num_blocks, num_slots,
    BLOCK_PARTIALS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Each slot's maximum over an image's token blocks: int64, -1 for slots that are padding.

    Args:
        packed_topk: pointer to the image's int64 ``[num_blocks, K]``.
        BLOCK_PARTIALS: token blocks read by one load; UNROLL such loads are in flight together.
    """
    best = tl.full([BLOCK_PARTIALS, slot.shape[0]], -1, tl.int64)
    for first in range(0, num_blocks, BLOCK_PARTIALS * UNROLL):
        # Unrolled, so that no load waits for another.
        for step in tl.static_range(UNROLL):
            # Past the end the last block is read again, which is quicker than a mask.
            block = first + step * BLOCK_PARTIALS + tl.arange(0, BLOCK_PARTIALS)
            block = tl.minimum(block, num_blocks - 1)
            offs = (block * num_slots)[:, None] + slot[None, :]
            best = tl.maximum(best, tl.load(packed_topk + offs, mask=mask_slot[None, :]))
    return tl.where(mask_slot, tl.max(best, axis=0), -1)
