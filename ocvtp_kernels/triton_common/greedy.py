"""What the greedy kernels share: the best token of a program's scores, and rows of a matrix."""

from __future__ import annotations

import triton
import triton.language as tl

from ocvtp_kernels.triton_common.packed_argmax import pack_argmax


@triton.jit
def times(a, b):
    """``a * b``, rounded before it is added to anything.

    A compiler fuses a product with the sum that takes it, which then rounds once where the
    reference rounds twice. An fma is not fused again; adding zero only turns -0 into 0.
    """
    return tl.fma(a, b, 0.0)


@triton.jit
def best_token(scores, token, free):
    """The free token of highest score, packed by `pack_argmax`; -1 if none is free."""
    return tl.max(tl.where(free, pack_argmax(scores, token), -1))


@triton.jit
def load_row(matrix, row, row_stride, token, mask, padding):
    """Row ``row`` (int64) of an image's matrix as float32, ``padding`` past its end."""
    values = tl.load(matrix + row * row_stride + token, mask=mask, other=padding)
    return values.to(tl.float32)


@triton.jit
def nan_last(scores):
    """A NaN counts as -inf."""
    return tl.where(scores != scores, float("-inf"), scores)
