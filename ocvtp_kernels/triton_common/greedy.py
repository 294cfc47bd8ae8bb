"""What the greedy kernels share: the best token of a program's scores, and rows of a matrix."""

from __future__ import annotations

import triton
import triton.language as tl

from ocvtp_kernels.ops.slot_argmax.triton import pack_pick


@triton.jit
def times(a, b):
    """``a * b``, rounded by itself.

    A compiler fuses a product into the sum that takes it, which then rounds once where the
    reference rounds twice. It cannot fuse a fused one; the zero only turns -0 into 0.
    """
    return tl.fma(a, b, 0.0)


@triton.jit
def best_token(scores, token, free):
    """The highest score's pick among free tokens, as `pack_pick` orders them; -1 of none."""
    return tl.max(tl.where(free, pack_pick(scores, token), -1))


@triton.jit
def load_row(matrix, row, row_stride, token, live, padding):
    """Row ``row`` (int64) of an image's matrix as float32, ``padding`` past its end."""
    values = tl.load(matrix + row * row_stride + token, mask=live, other=padding)
    return values.to(tl.float32)


@triton.jit
def nan_last(scores):
    """A NaN counts as -inf."""
    return tl.where(scores != scores, float("-inf"), scores)
