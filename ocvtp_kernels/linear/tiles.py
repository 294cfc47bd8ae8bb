"""Tiles of the Linear, per chip: static, never chosen by timing at run time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from ocvtp_kernels.gpu.chips import Chip


class LinearTile(NamedTuple):
    """One program's block of the output, and how the depth is walked."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


# Largest first. Small tiles give batch 1 enough programs to fill the chip, each with less to fetch.
# Within a chip and dtype the depth is one, and so is the matrix instruction: fewer than 64 rows
# would take another on sm_90 and sm_100. Sums then run in the same order whatever the batch.
_WIDE = LinearTile(128, 128, 64, 8, 3)
_MIDDLE = LinearTile(64, 64, 64, 4, 3)
_SMALL = LinearTile(64, 32, 64, 4, 4)
_SLIM = LinearTile(64, 16, 64, 4, 4)
_SLIMMER = (_SLIM._replace(rows=32), _SLIM._replace(rows=16))
_LARGE_SHARED = (_WIDE, _MIDDLE, _SMALL, _SLIM)
_SMALL_SHARED = (
    LinearTile(128, 64, 32, 8, 4),
    LinearTile(64, 64, 32, 4, 4),
    LinearTile(64, 32, 32, 4, 4),
    *(LinearTile(rows, 16, 32, 4, 4) for rows in (64, 32, 16)),
)
HALF = {
    80: (*_LARGE_SHARED, *_SLIMMER),
    86: _SMALL_SHARED,
    89: _SMALL_SHARED,
    90: _LARGE_SHARED,
    100: _LARGE_SHARED,
    120: _SMALL_SHARED,
}
# For a Linear with neither LayerNorm nor residual, which leave it no registers.
WIDEST = {90: LinearTile(128, 256, 64, 8, 3), 100: LinearTile(128, 256, 64, 8, 3)}
# float32 multiplies outside the tensor cores, from registers: small and square.
SINGLE = (LinearTile(64, 64, 32, 4, 2), LinearTile(32, 32, 32, 4, 2), LinearTile(16, 16, 32, 4, 2))


@lru_cache(1024)
def linear_tile(chip: Chip, dtype: torch.dtype, rows: int, columns: int, plain: bool) -> LinearTile:
    """The Linear's tile for an output of ``rows`` by ``columns``; plain: no norm, no residual."""
    if dtype == torch.float32:
        return first_that_fills(SINGLE, chip, rows, columns)
    widest = WIDEST.get(chip.capability)
    table = HALF[chip.capability]
    return first_that_fills((widest, *table) if widest and plain else table, chip, rows, columns)


def first_that_fills(
    table: Sequence[LinearTile], chip: Chip, rows: int, columns: int
) -> LinearTile:
    """The largest tile that still gives most multiprocessors a program, else the smallest."""
    for tile in table:
        programs = ceil_div(rows, tile.rows) * ceil_div(columns, tile.columns)
        if 4 * programs >= 3 * chip.multiprocessors:
            return tile
    return table[-1]
