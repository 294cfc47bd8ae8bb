"""Tiles of the Linear, per GPU architecture: static, never chosen by timing at run time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from ocvtp_kernels.triton_common.archs import GpuArch
from ocvtp_kernels.triton_common.blocks import ceil_div, power_of_two


class LinearTile(NamedTuple):
    """One program's block of the output ``[block_m, block_n]``, and its step along the depth."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


class NormTile(NamedTuple):
    """The rows ``[block_m, block_width]`` that a program of the LayerNorm holds in registers."""

    block_m: int
    block_width: int
    num_warps: int


WARP_ELEMENTS = 2048  # of rows, in the registers of one warp


@lru_cache(1024)
def norm_tile(width: int) -> NormTile:
    """The LayerNorm's tile: one warp where it can hold a row, which needs no barrier."""
    padded = power_of_two(width, 32)
    return NormTile(
        max(1, min(WARP_ELEMENTS // padded, 16)),
        padded,
        max(1, min(padded // WARP_ELEMENTS, 16)),
    )


# Batch-invariant: within an architecture and dtype all tiles have one block_k and one matrix
# instruction (with fewer than 64 rows sm_90 and sm_100 would take another), so one order of sums.
_TALL = (
    LinearTile(64, 16, 64, 4, 7),
    LinearTile(64, 32, 64, 4, 6),
    LinearTile(64, 64, 64, 4, 4),
    LinearTile(64, 128, 64, 4, 4),
    LinearTile(128, 128, 64, 8, 3),
)
_WIDEST = LinearTile(128, 256, 64, 8, 3)
_SLIM = tuple(LinearTile(block_m, 16, 64, 4, 7) for block_m in (16, 32))
_LITTLE_SHARED = (
    *(LinearTile(block_m, 16, 32, 4, 7) for block_m in (16, 32, 64)),
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
# float32 multiplies on the CUDA cores, from registers: small and square.
SINGLE = tuple(LinearTile(side, side, 32, 4, 3) for side in (64, 32, 16))


@lru_cache(1024)
def linear_tile(arch: GpuArch, dtype: torch.dtype, rows: int, columns: int) -> LinearTile:
    """The Linear's tile for an output of ``rows`` by ``columns``."""
    if dtype == torch.float32:
        return first_that_fills(SINGLE, arch, rows, columns)
    return cheapest(HALF[arch.capability], arch, rows, columns)


# Half precision elements a cycle that a multiprocessor reads from L2 at most, and while all read
# (7 TB/s among 132 at 1.75 GHz on H100).
PORT, FAIR_SHARE = 32, 15
STEP = 3  # cycles that an element of the depth takes at least, by latency


def cheapest(
    table: Sequence[LinearTile], arch: GpuArch, rows: int, columns: int, weights: int = 1
) -> LinearTile:
    """The tile with the fewest cycles, by the bytes it reads and the products it makes.

    Args:
        weights: matrices of ``columns`` columns each that a program multiplies its rows with.
    """

    def cycles(tile: LinearTile) -> float:
        programs = ceil_div(rows, tile.block_m) * ceil_div(columns, tile.block_n)
        waves = ceil_div(programs, arch.multiprocessors)
        loaded = tile.block_m + weights * tile.block_n
        return max(
            STEP,
            waves * loaded / PORT,
            programs * loaded / (FAIR_SHARE * arch.multiprocessors),
            waves * tile.block_m * weights * tile.block_n / arch.products,
        )

    return min(table, key=cycles)


def first_that_fills(
    table: Sequence[LinearTile], arch: GpuArch, rows: int, columns: int
) -> LinearTile:
    """The largest tile that still gives most multiprocessors a program, else the smallest."""
    for tile in table:
        programs = ceil_div(rows, tile.block_m) * ceil_div(columns, tile.block_n)
        if 4 * programs >= 3 * arch.multiprocessors:
            return tile
    return table[-1]
