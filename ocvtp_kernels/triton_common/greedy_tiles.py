"""Tiles of the greedy kernels: they follow from shapes alone."""

from __future__ import annotations

from typing import NamedTuple

from ocvtp_kernels.triton_common.blocks import power_of_two

# Tokens of an image whose running scores one program of a GPU keeps in its registers.
MAX_TOKENS = 4096


class GreedyTile(NamedTuple):
    """The tokens one program holds, and what it reads at once beside them."""

    block_tokens: int
    unroll: int  # rows or elements loaded before the first of them is used
    num_warps: int


def greedy_tile(num_tokens: int) -> GreedyTile:
    """All tokens of an image: at most eight a thread leave registers for rows in flight."""
    block_tokens = power_of_two(num_tokens, 128)
    num_warps = 4 if block_tokens <= 256 else 8 if block_tokens <= 2048 else 16
    return GreedyTile(block_tokens, 16 if block_tokens <= 1024 else 8, num_warps)


def expansion_tile(num_tokens: int) -> GreedyTile:
    """The same for the centrifugal expansion, whose state is larger."""
    tile = greedy_tile(num_tokens)
    return tile._replace(unroll=8 if tile.block_tokens <= 1024 else 4)


class MatrixTile(NamedTuple):
    """One program's rows and columns of a matrix or of points."""

    block_rows: int
    block_columns: int
    num_warps: int


# Columns of a distance matrix, walked down its rows.
NEAREST = MatrixTile(64, 16, 4)


def pivot_tile(num_tokens: int, depth: int) -> MatrixTile:
    """Points a program and channels a step; few points, so that one image fills the GPU."""
    return MatrixTile(4 if num_tokens <= 1024 else 8, min(power_of_two(depth), 256), 4)


def match_tile() -> MatrixTile:
    """Tokens of the two sides whose similarities are read at once."""
    return MatrixTile(32, 128, 16)


def merge_tile(num_tokens: int, width: int) -> MatrixTile:
    """Assignments read in one step, as rows, and channels summed by one program."""
    return MatrixTile(min(power_of_two(num_tokens), 1024), min(power_of_two(width), 512), 4)


def gain_tile(num_tokens: int) -> MatrixTile:
    """Rows a program and similarities a step."""
    return MatrixTile(4 if num_tokens <= 1024 else 8, 256, 4)
