"""Which image, and which of its blocks, a program of a kernel takes."""

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


@triton.jit
def tile_of_image(program, rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The image, int64, block of rows and block of columns of the ``program``-th tile."""
    column_blocks = tl.cdiv(columns, BLOCK_N)
    row_blocks = tl.cdiv(rows, BLOCK_M)
    column_block = program % column_blocks
    row_block = (program // column_blocks) % row_blocks
    image = (program // (column_blocks * row_blocks)).to(tl.int64)
    return image, row_block, column_block
