"""Arithmetic of block sizes."""

from __future__ import annotations


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


def power_of_two(number: int, least: int = 16) -> int:
    """The smallest power of two that is neither below ``number`` nor below ``least``."""
    return max(least, 1 << (number - 1).bit_length())
