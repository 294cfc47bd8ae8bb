"""Tiles of the importance kernels: static, never chosen by timing at run time.

They follow from dtype, queries and head width alone, so that sums run in the same order for every
batch. Each fits the GPU with the least shared memory: no architecture has a table of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ocvtp_kernels.ops.slot_attention.tiles import power_of_two

WHOLE_DEPTH = 128  # widest head that a tile of half precision holds in one step


class ReceivedTile(NamedTuple):
    """One program's block of logits, and the walk along the head's channels."""

    queries: int
    keys: int
    depth: int
    whole: bool  # the walk is one step, so that a program reads its own rows once
    warps: int
    stages: int


def rows_tile(dtype: torch.dtype, num_queries: int, depth: int) -> ReceivedTile:
    """The tile of the pass that owns queries."""
    return _tile(dtype, num_queries, depth, 128)


def received_tile(dtype: torch.dtype, num_queries: int, depth: int) -> ReceivedTile:
    """The tile of the pass that owns keys, whose sum is as large as its logits."""
    return _tile(dtype, num_queries, depth, 64)


def _tile(dtype: torch.dtype, num_queries: int, depth: int, most_keys: int) -> ReceivedTile:
    queries = min(64, power_of_two(num_queries))
    if dtype == torch.float32:
        # Its dots hold their operands in registers.
        return ReceivedTile(queries, 64, 16, False, 8, 3)
    if depth > WHOLE_DEPTH:
        return ReceivedTile(queries, 64, 32, False, 8, 3)
    if depth > 64:
        return ReceivedTile(queries, 64, WHOLE_DEPTH, True, 8, 3)
    return ReceivedTile(queries, most_keys, power_of_two(depth), True, 4, 3)
