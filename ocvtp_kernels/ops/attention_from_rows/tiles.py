"""Tiles of the importance kernels: static, never timed at run time.

They follow from dtype, queries and head width alone, so the kernels are batch-invariant. Each fits
the GPU with the least shared memory: no architecture has a table of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ocvtp_kernels.triton_common.blocks import power_of_two

SINGLE_BLOCK_DEPTH = 128  # widest head that a tile of half precision holds in one step


class ReceivedTile(NamedTuple):
    """One program's block of logits, and its step along the head's channels."""

    block_queries: int
    block_keys: int
    block_k: int
    single_block: bool  # BLOCK_K holds all channels, so a program reads its own rows once
    num_warps: int
    num_stages: int


def query_stats_tile(dtype: torch.dtype, num_queries: int, depth: int) -> ReceivedTile:
    """The tile of the pass over blocks of queries."""
    return _tile(dtype, num_queries, depth, 128)


def received_tile(dtype: torch.dtype, num_queries: int, depth: int) -> ReceivedTile:
    """The tile of the pass over blocks of keys, whose sum is as large as its logits."""
    return _tile(dtype, num_queries, depth, 64)


def _tile(dtype: torch.dtype, num_queries: int, depth: int, max_keys: int) -> ReceivedTile:
    block_queries = min(64, power_of_two(num_queries))
    if dtype == torch.float32:
        # float32 dots hold their operands in registers.
        return ReceivedTile(block_queries, 64, 16, False, 8, 3)
    if depth > SINGLE_BLOCK_DEPTH:
        return ReceivedTile(block_queries, 64, 32, False, 8, 3)
    if depth > 64:
        return ReceivedTile(block_queries, 64, SINGLE_BLOCK_DEPTH, True, 8, 3)
    return ReceivedTile(block_queries, max_keys, power_of_two(depth), True, 4, 3)
