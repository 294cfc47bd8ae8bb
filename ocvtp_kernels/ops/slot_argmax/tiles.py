"""Tiles of the argmax kernels, per GPU architecture: static, never timed at run time."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ocvtp_kernels.ops.slot_attention.tiles import (
    ONE_TILE,
    SlotAttentionTile,
    logits_depth,
    slots_per_tile,
    softmax_stats_tile,
)
from ocvtp_kernels.triton_common.archs import GpuArch
from ocvtp_kernels.triton_common.blocks import ceil_div, power_of_two


def argmax_tile(arch: GpuArch, dtype: torch.dtype, num_slots: int) -> SlotAttentionTile:
    """The tile of logits of the last iteration; every program takes one."""
    if num_slots > ONE_TILE:
        # The tile that made the statistics: the largest score then is exactly the token_score.
        return softmax_stats_tile(arch, dtype)
    block_slots, block_k = slots_per_tile(num_slots), logits_depth(arch, dtype)
    if dtype == torch.float32:
        return SlotAttentionTile(block_slots, 16, block_k, 0, 8, 3)
    return SlotAttentionTile(block_slots, 32, block_k, 0, 8 if block_slots == ONE_TILE else 4, 3)


class ReduceTile(NamedTuple):
    """How one program reduces the packed argmax of all token blocks."""

    block_slots: int
    block_partials: int  # token blocks that one load reads
    unroll: int  # loads in flight together


def reduce_tile(num_slots: int, num_blocks: int, num_warps: int, max_slots: int) -> ReduceTile:
    """At most 16 integers a load and thread; eight loads at once read all blocks if they can."""
    block_slots = min(power_of_two(num_slots), max_slots)
    block_partials = min(power_of_two(num_blocks, 1), 512 * min(num_warps, 8) // block_slots)
    return ReduceTile(block_slots, block_partials, min(ceil_div(num_blocks, block_partials), 8))
