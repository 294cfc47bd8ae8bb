"""Tiles of the Linear, per GPU architecture: static, never chosen by timing at run time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from ocvtp_kernels.triton_common.archs import GpuArch


class LinearTile(NamedTuple):
    """One program's block of the output, and how the depth is walked."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


class NormTile(NamedTuple):
    """The rows that a program of the LayerNorm holds in its registers."""

    rows: int
    width: int
    warps: int


WARP_NUMBERS = 2048  # of rows, in the registers of one warp


@lru_cache(1024)
def norm_tile(width: int) -> NormTile:
    """The LayerNorm's tile: one warp where it can hold a row, since it then waits for no other."""
    padded = max(32, 1 << (width - 1).bit_length())
    return NormTile(
        max(1, min(WARP_NUMBERS // padded, 16)),
        padded,
        max(1, min(padded // WARP_NUMBERS, 16)),
    )


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


# Within an architecture and dtype the depth is one, and so is the matrix instruction: fewer than 64
# rows would take another on sm_90 and sm_100. Sums then run in the same order whatever the batch.
_TALL = (
    LinearTile(64, 16, 64, 4, 7),
    LinearTile(64, 32, 64, 4, 6),
    LinearTile(64, 64, 64, 4, 4),
    LinearTile(64, 128, 64, 4, 4),
    LinearTile(128, 128, 64, 8, 3),
)
_WIDEST = LinearTile(128, 256, 64, 8, 3)
_SLIM = tuple(LinearTile(rows, 16, 64, 4, 7) for rows in (16, 32))
_LITTLE_SHARED = (
    *(LinearTile(rows, 16, 32, 4, 7) for rows in (16, 32, 64)),
    LinearTile(64, 32, 32, 4, 6),
    LinearTile(64, 64, 32, 4, 4),
    LinearTile(128, 64, 32, 8, 4),
)
HALF = {
    80: (*_SLIM, *_TALL),
    86: _LITTLE_SHARED,
    89: _LITTLE_SHARED,
    90: (*_TALL, _WIDEST),
    100: (*_TALL, _WIDEST),
    120: _LITTLE_SHARED,
}
# float32 multiplies outside the tensor cores, from registers: small and square.
SINGLE = tuple(LinearTile(side, side, 32, 4, 3) for side in (64, 32, 16))


@lru_cache(1024)
def linear_tile(arch: GpuArch, dtype: torch.dtype, rows: int, columns: int) -> LinearTile:
    """The Linear's tile for an output of ``rows`` by ``columns``."""
    if dtype == torch.float32:
        return first_that_fills(SINGLE, arch, rows, columns)
    return cheapest(HALF[arch.capability], arch, rows, columns)


# Numbers in half precision a cycle: what a multiprocessor takes of L2, and what each gets of it
# where all ask (7 TB/s among 132 at 1.75 GHz on H100).
PORT, FAIR_SHARE = 32, 15
STEP = 3  # cycles a number of the depth takes at least, waiting


def cheapest(
    table: Sequence[LinearTile], arch: GpuArch, rows: int, columns: int, weights: int = 1
) -> LinearTile:
    """The tile whose products take the fewest cycles by what they fetch and multiply.

    Args:
        weights: matrices of as many ``columns`` that the rows meet in one program.
    """

    def cycles(tile: LinearTile) -> float:
        programs = ceil_div(rows, tile.rows) * ceil_div(columns, tile.columns)
        most = ceil_div(programs, arch.multiprocessors)
        fetched = tile.rows + weights * tile.columns
        return max(
            STEP,
            most * fetched / PORT,
            programs * fetched / (FAIR_SHARE * arch.multiprocessors),
            most * tile.rows * weights * tile.columns / arch.products,
        )

    return min(table, key=cycles)


def first_that_fills(
    table: Sequence[LinearTile], arch: GpuArch, rows: int, columns: int
) -> LinearTile:
    """The largest tile that still gives most multiprocessors a program, else the smallest."""
    for tile in table:
        programs = ceil_div(rows, tile.rows) * ceil_div(columns, tile.columns)
        if 4 * programs >= 3 * arch.multiprocessors:
            return tile
    return table[-1]
