"""Functions that NumPy has no long double of."""

from __future__ import annotations

import numpy as np

from tests.csrc.shapes import Array


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def erfc(x: Array) -> Array:
    """Abramowitz and Stegun 7.1.6 below 2, and the continued fraction 7.1.14 above."""
    size = np.abs(x).astype(np.longdouble)
    gauss = np.exp(-np.square(size)) / np.sqrt(np.arccos(np.longdouble(-1)))
    near = np.minimum(size, 2)
    term = total = near
    for n in range(1, 60):
        term = term * 2 * np.square(near) / (2 * n + 1)
        total = total + term
    far = fraction = np.maximum(size, 2)
    for n in range(120, 0, -1):
        fraction = far + n / (2 * fraction)
    tail = np.where(size < 2, 1 - 2 * gauss * total, gauss / fraction)
    return np.where(x < 0, 2 - tail, tail)
