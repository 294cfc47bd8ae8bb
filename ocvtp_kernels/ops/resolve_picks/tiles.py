"""Tiles of `resolve_picks`: static, never timed at run time."""

from __future__ import annotations

from typing import NamedTuple

from ocvtp_kernels.ops.slot_argmax.tiles import ReduceTile, reduce_tile
from ocvtp_kernels.triton_common.archs import GpuArch
from ocvtp_kernels.triton_common.blocks import ceil_div, power_of_two


class ResolveTile(NamedTuple):
    """How one program walks the packed argmax, the tokens and the rows that it gathers."""

    reduce: ReduceTile
    block_tokens: int
    block_rows: int
    block_columns: int
    num_warps: int


def resolve_tile(
    num_slots: int, num_blocks: int, num_tokens: int, width: int, element_size: int
) -> ResolveTile:
    """All tokens at once, and rows of ``width`` elements of ``element_size`` bytes in blocks.

    Few warps: counting is quick, but the warps have to exchange their counts.
    """
    block_tokens = power_of_two(num_tokens)
    num_warps = 4 if block_tokens <= 1024 else 8 if block_tokens <= 8192 else 16
    return ResolveTile(
        reduce_tile(num_slots, num_blocks, num_warps, 256),
        block_tokens,
        8 if num_warps == 4 else 16,
        min(power_of_two(width), 2048 // element_size),
        num_warps,
    )


def gather_splits(arch: GpuArch, batch: int, budget: int) -> int:
    """Programs an image that gather, each at least eight rows: enough to fill the GPU."""
    return max(1, min(ceil_div(arch.multiprocessors, max(batch, 1)), ceil_div(budget, 8), 16))
