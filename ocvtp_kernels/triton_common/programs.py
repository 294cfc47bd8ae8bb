"""Which image, and which block of its items, a program takes."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def block_of_image(count, BLOCK_SIZE: tl.constexpr):
    """The image, int64, and ``BLOCK_SIZE`` of its ``count`` items: their indices and mask."""
    blocks = tl.cdiv(count, BLOCK_SIZE)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    index = (tl.program_id(0) % blocks) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    return image, index, index < count
