"""Tiles of the slot kernels, per GPU architecture: static, never chosen by timing at run time.

Within an architecture and dtype ``tokens`` and ``depth`` are the same for every batch, so that sums
run in the same order and an image alone equals itself in a batch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from ocvtp_kernels.triton_common.archs import GpuArch
from ocvtp_kernels.triton_common.linear_tiles import (
    LinearTile,
    ceil_div,
    cheapest,
    first_that_fills,
)

ONE_TILE = 128  # most slots that one tile holds
BLOCK = 64  # slots a tile, where there are more
MOST_GROUPS = 9  # of tokens, in the competition
PIECE_NUMBERS = 64 * 64  # of each share, that the last program to arrive adds up at a time
SMALL_SHARED = 100 * 1024  # bytes; GPUs with less have fewer registers to spare too


class SlotAttentionTile(NamedTuple):
    """One program's block of logits, the walk along D, and its channels of the values."""

    block_slots: int
    block_tokens: int
    block_k: int
    block_d: int
    num_warps: int
    num_stages: int


def power_of_two(number: int, least: int = 16) -> int:
    """The smallest power of two that is neither below ``number`` nor below ``least``."""
    return max(least, 1 << (number - 1).bit_length())


def slots_per_tile(num_slots: int) -> int:
    """All slots where one tile holds them, else a block of them."""
    return power_of_two(num_slots) if num_slots <= ONE_TILE else BLOCK


def slot_attention_fwd_tile(
    arch: GpuArch, dtype: torch.dtype, batch: int, num_slots: int, num_tokens: int, width: int
) -> SlotAttentionTile:
    """The competition's tile: the chunk of channels that takes the least time by count.

    Every chunk computes the logits again, so a wide one has less to do and fewer programs.
    """
    slots, depth = slots_per_tile(num_slots), logits_depth(arch, dtype)
    if dtype == torch.float32:
        tokens, chunk = (32, 32) if slots < ONE_TILE else (16, 32)
        return SlotAttentionTile(slots, tokens, depth, chunk, 8, 3)
    small = arch.shared_bytes < SMALL_SHARED
    tokens = 32 if small or slots == ONE_TILE else 64
    # Older matrix instructions leave fewer registers.
    widest = 256 if arch.capability in (90, 100) else 128
    chunk = min(widest if slots < ONE_TILE else 32 if small else 64, power_of_two(width))
    blocks, parts = ceil_div(num_tokens, tokens), batch * ceil_div(num_slots, slots)

    def work(chunk: int) -> float:
        return min(rounds(arch, parts * ceil_div(width, chunk), blocks)) * (width + chunk)

    chunks = [chunk, *(each for each in (128, 64) if each < chunk)]
    chosen = min(chunks, key=work)
    return SlotAttentionTile(slots, tokens, depth, chosen, 8, 4 if chosen <= 128 else 5)


ADDING_UP = 1.7  # token blocks in whose time a group's sums are stored and added up


def rounds(arch: GpuArch, parts: int, blocks: int) -> tuple[float, float]:
    """Token blocks one after another: a program a part, or one a part and group of tokens."""
    groups, each = groups_of(blocks)
    apart = ceil_div(parts * groups, arch.multiprocessors) * (each + ADDING_UP)
    return ceil_div(parts, arch.multiprocessors) * blocks, apart


def groups_of(blocks: int) -> tuple[int, int]:
    """Groups of token blocks, and blocks of each: of the number of tokens alone."""
    each = ceil_div(blocks, MOST_GROUPS)
    return ceil_div(blocks, each), each


def logits_depth(arch: GpuArch, dtype: torch.dtype) -> int:
    """The step along D of every kernel that computes logits.

    One for all of an architecture and dtype: logits that are held against stored softmax_stats must
    be the logits that made them.
    """
    if dtype == torch.float32:
        return 16
    return 32 if arch.shared_bytes < SMALL_SHARED else 64


def softmax_stats_tile(arch: GpuArch, dtype: torch.dtype) -> SlotAttentionTile:
    """The tile of the pass over all slots, block by block."""
    depth = logits_depth(arch, dtype)
    if dtype == torch.float32:
        return SlotAttentionTile(BLOCK, 16, depth, 0, 4, 2)
    return SlotAttentionTile(BLOCK, 32, depth, 0, 8, 4)


def fills(arch: GpuArch, programs: int) -> bool:
    """Whether programs that take all tokens keep the GPU busy enough not to split the tokens."""
    return 5 * programs >= 2 * arch.multiprocessors


_GRU_HALF = (LinearTile(64, 16, 64, 4, 6), LinearTile(64, 32, 64, 4, 4))
_GRU_WIDE = (LinearTile(128, 32, 64, 8, 4), LinearTile(128, 64, 64, 8, 4))
_GRU_SLIM = tuple(_GRU_HALF[0]._replace(rows=rows) for rows in (16, 32))
_GRU_SINGLE = (LinearTile(32, 32, 16, 8, 3), LinearTile(16, 16, 16, 4, 3))


@lru_cache(1024)
def gru_tile(arch: GpuArch, dtype: torch.dtype, rows: int, dim: int) -> LinearTile:
    """The GRU's tile; ``columns`` counts those of one gate."""
    if dtype == torch.float32:
        return first_that_fills(_GRU_SINGLE, arch, rows, dim)
    # As for the Linear, fewer than 64 rows would take another matrix instruction.
    newer = arch.capability in (90, 100)
    table = (*_GRU_HALF, *_GRU_WIDE) if newer else (*_GRU_SLIM, *_GRU_HALF)
    return cheapest(table, arch, rows, dim, weights=3)


def one_backward_tile(arch: GpuArch, dtype: torch.dtype, num_slots: int) -> bool:
    """Whether all slots, and what the three gradients need of them, fit the registers."""
    newer = arch.capability in (90, 100)
    return dtype != torch.float32 and num_slots <= (ONE_TILE if newer else BLOCK)


def compete_backward_tile(
    arch: GpuArch, dtype: torch.dtype, batch: int, num_slots: int, channels: int
) -> SlotAttentionTile:
    """The gradient's tile: chunks as wide as still give most multiprocessors a program.

    Every chunk computes the logits and the attention's gradient again. Tokens are rows of their
    own gradients, so as many as the newer matrix instructions need.
    """
    together = one_backward_tile(arch, dtype, num_slots)
    slots = power_of_two(num_slots) if together else min(BLOCK, power_of_two(num_slots))
    depth = logits_depth(arch, dtype)
    if dtype == torch.float32:
        return SlotAttentionTile(slots, 32, depth, 32, 8, 3)
    widest = 64 if slots == ONE_TILE else 256 if together and arch.capability == 90 else 128
    chunk = min(widest, power_of_two(channels))
    parts = batch * ceil_div(num_slots, slots)
    while chunk > 64 and 4 * parts * ceil_div(channels, chunk) < 3 * arch.multiprocessors:
        chunk //= 2
    tokens = 64 if arch.capability in (90, 100) else 32
    return SlotAttentionTile(slots, tokens, depth, chunk, 8, 3)


def tokens_backward_tile(arch: GpuArch, dtype: torch.dtype, channels: int) -> SlotAttentionTile:
    """The tile of the tokens' gradients, where they are a kernel of their own."""
    return compete_backward_tile(arch, dtype, 1, ONE_TILE + 1, channels)
