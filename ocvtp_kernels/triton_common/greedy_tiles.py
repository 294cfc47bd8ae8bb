"""What the greedy kernels hold at once; tiles follow from shapes alone."""

from __future__ import annotations

from typing import NamedTuple

from ocvtp_kernels.ops.slot_attention.tiles import power_of_two

# Tokens of an image whose running scores one program of a GPU keeps in its registers.
MOST_TOKENS = 4096


class GreedyTile(NamedTuple):
    """The tokens one program holds, and what it reads at once beside them."""

    tokens: int
    unroll: int  # rows or numbers loaded before the first of them is used
    warps: int


def greedy_tile(num_tokens: int) -> GreedyTile:
    """All tokens of an image: at most eight a thread, so that rows in flight find registers."""
    tokens = power_of_two(num_tokens, 128)
    warps = 4 if tokens <= 256 else 8 if tokens <= 2048 else 16
    return GreedyTile(tokens, 16 if tokens <= 1024 else 8, warps)


def expansion_tile(num_tokens: int) -> GreedyTile:
    """The same for the centrifugal expansion, whose state is larger."""
    tile = greedy_tile(num_tokens)
    return tile._replace(unroll=8 if tile.tokens <= 1024 else 4)


class WalkTile(NamedTuple):
    """One program's rows and columns of a matrix or of points."""

    rows: int
    columns: int
    warps: int


# Columns of a distance matrix, walked down its rows.
NEAREST = WalkTile(64, 16, 4)


def pivot_tile(num_tokens: int, depth: int) -> WalkTile:
    """Points a program and channels a step; few points, so that one image fills the GPU."""
    return WalkTile(4 if num_tokens <= 1024 else 8, min(power_of_two(depth), 256), 4)


def match_tile() -> WalkTile:
    """Places of a and of b whose similarities are read at once."""
    return WalkTile(32, 128, 16)


def merge_tile(num_tokens: int, width: int) -> WalkTile:
    """Owners looked at in one step, as rows, and channels summed by one program."""
    return WalkTile(min(power_of_two(num_tokens), 1024), min(power_of_two(width), 512), 4)


def gain_tile(num_tokens: int) -> WalkTile:
    """Rows a program and similarities a step."""
    return WalkTile(4 if num_tokens <= 1024 else 8, 256, 4)
