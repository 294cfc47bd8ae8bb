"""Arithmetic that Triton lacks, as device functions."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def log1p(x):
    """``log(1 + x)`` for x >= 0, exact to rounding where x is tiny."""
    series = x * (1.0 - x * (0.5 - x * (1.0 / 3.0 - x * (0.25 - x * 0.2))))
    one_more = 1.0 + x
    # The second term mends what the sum rounded off.
    return tl.where(x < 0.01, series, tl.log(one_more) + (x - (one_more - 1.0)) / one_more)


@triton.jit
def tanh(x):
    """Hyperbolic tangent; exp of a negative number cannot overflow."""
    small = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - small) / (1.0 + small)
    return tl.where(x < 0.0, -size, size)


@triton.jit
def gelu(x):
    """The exact GELU, ``x Phi(x)``."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def ordered(x):
    """float32 to int64 in [0, 2^32) of the same order; -0 equals 0, and NaN is the lowest number.

    NaN maps to -inf, so it never beats a number.
    """
    x = tl.where(x != x, float("-inf"), x)
    x = tl.where(x == 0.0, 0.0, x)
    bits = x.to(tl.int32, bitcast=True).to(tl.int64)
    # Of negative numbers the bits grow as the number falls.
    return tl.where(bits < 0, -(bits + 2147483649), bits) + 2147483648
