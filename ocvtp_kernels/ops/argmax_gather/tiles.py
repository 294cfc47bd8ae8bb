"""Tiles of the selection kernels, per GPU architecture: static, never timed at run time."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ocvtp_kernels.ops.slot_attention.tiles import (
    ONE_TILE,
    CompeteTile,
    logits_depth,
    power_of_two,
    slots_per_tile,
    standings_tile,
)
from ocvtp_kernels.triton_common.archs import GpuArch
from ocvtp_kernels.triton_common.linear_tiles import ceil_div

MOST_TOKENS = 16384  # of one image, in the registers of one program
MOST_RANKS = 2**30  # top_k * num_tokens stays below


def argmax_tile(arch: GpuArch, dtype: torch.dtype, num_slots: int) -> CompeteTile:
    """The tile of logits of the last iteration; every program takes one."""
    if num_slots > ONE_TILE:
        # The very tile that made the standings: a leader's score is then exactly its evidence.
        return standings_tile(arch, dtype)
    slots, depth = slots_per_tile(num_slots), logits_depth(arch, dtype)
    if dtype == torch.float32:
        return CompeteTile(slots, 16, depth, 0, 8, 3)
    return CompeteTile(slots, 32, depth, 0, 8 if slots == ONE_TILE else 4, 3)


class BestTile(NamedTuple):
    """How one program walks the picks of all token blocks."""

    slots: int
    blocks: int
    passes: int  # tiles of blocks that it loads together


def best_tile(num_slots: int, blocks: int, warps: int, most_slots: int) -> BestTile:
    """At most 16 picks a tile and thread; all blocks together where eight tiles hold them."""
    slots = min(power_of_two(num_slots), most_slots)
    rows = min(power_of_two(blocks, 1), 512 * min(warps, 8) // slots)
    return BestTile(slots, rows, min(ceil_div(blocks, rows), 8))


class ResolveTile(NamedTuple):
    """How one program walks picks, tokens and the rows that it gathers."""

    best: BestTile
    tokens: int
    rows: int
    columns: int
    warps: int


def resolve_tile(
    num_slots: int, blocks: int, num_tokens: int, width: int, size: int
) -> ResolveTile:
    """All tokens at once, and rows of ``width`` elements of ``size`` bytes in pieces.

    Few warps, since counting is quick and what they tell one another is not.
    """
    tokens = power_of_two(num_tokens)
    warps = 4 if tokens <= 1024 else 8 if tokens <= 8192 else 16
    return ResolveTile(
        best_tile(num_slots, blocks, warps, 256),
        tokens,
        8 if warps == 4 else 16,
        min(power_of_two(width), 2048 // size),
        warps,
    )


def gather_parts(arch: GpuArch, batch: int, budget: int) -> int:
    """Programs an image that gather, each at least eight rows: enough to fill the GPU."""
    return max(1, min(ceil_div(arch.multiprocessors, max(batch, 1)), ceil_div(budget, 8), 16))
