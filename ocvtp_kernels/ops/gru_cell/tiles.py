"""Tiles of the GRU, per GPU architecture: static, never chosen by timing at run time."""

from __future__ import annotations

from functools import lru_cache

import torch

from ocvtp_kernels.triton_common.archs import GpuArch
from ocvtp_kernels.triton_common.linear_tiles import LinearTile, cheapest, first_that_fills

_GRU_HALF = (LinearTile(64, 16, 64, 4, 6), LinearTile(64, 32, 64, 4, 4))
_GRU_WIDE = (LinearTile(128, 32, 64, 8, 4), LinearTile(128, 64, 64, 8, 4))
_GRU_SLIM = tuple(_GRU_HALF[0]._replace(block_m=block_m) for block_m in (16, 32))
_GRU_SINGLE = (LinearTile(32, 32, 16, 8, 3), LinearTile(16, 16, 16, 4, 3))


@lru_cache(1024)
def gru_tile(arch: GpuArch, dtype: torch.dtype, rows: int, dim: int) -> LinearTile:
    """The GRU's tile; ``block_n`` counts the columns of one gate."""
    if dtype == torch.float32:
        return first_that_fills(_GRU_SINGLE, arch, rows, dim)
    # As in the Linear, fewer than 64 rows would take another matrix instruction.
    newer = arch.capability in (90, 100)
    table = (*_GRU_HALF, *_GRU_WIDE) if newer else (*_GRU_SLIM, *_GRU_HALF)
    return cheapest(table, arch, rows, dim, weights=3)
