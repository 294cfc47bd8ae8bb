"""Tiles of the slot kernels, per GPU architecture: static, never chosen by timing at run time.

Batch-invariant: within an architecture and dtype ``block_tokens`` and ``block_k`` are the same for
every batch, and so is the order of the sums.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ocvtp_kernels.triton_common.archs import GpuArch
from ocvtp_kernels.triton_common.blocks import ceil_div, power_of_two

ONE_TILE = 128  # most slots that one tile holds
BLOCK = 64  # slots of a tile, where there are more
MAX_GROUPS = 9  # of tokens, in the forward
SUM_ELEMENTS = 64 * 64  # of each split, that the last program adds up at a time
SMALL_SHARED = 100 * 1024  # bytes; GPUs with less have fewer registers to spare too


class SlotAttentionTile(NamedTuple):
    """One program's block of logits, its step along D, and its channels of the output."""

    block_slots: int
    block_tokens: int
    block_k: int
    block_d: int
    num_warps: int
    num_stages: int


def slots_per_tile(num_slots: int) -> int:
    """All slots where one tile holds them, else a block of them."""
    return power_of_two(num_slots) if num_slots <= ONE_TILE else BLOCK


def slot_attention_fwd_tile(
    arch: GpuArch, dtype: torch.dtype, batch: int, num_slots: int, num_tokens: int, width: int
) -> SlotAttentionTile:
    """The forward's tile, with the ``block_d`` that costs the least by count.

    Every block of channels recomputes the logits: wide blocks compute less, in fewer programs.
    """
    block_slots, block_k = slots_per_tile(num_slots), logits_depth(arch, dtype)
    if dtype == torch.float32:
        block_tokens = 32 if block_slots < ONE_TILE else 16
        return SlotAttentionTile(block_slots, block_tokens, block_k, 32, 8, 3)
    small = arch.shared_bytes < SMALL_SHARED
    block_tokens = 32 if small or block_slots == ONE_TILE else 64
    # Older matrix instructions leave fewer registers.
    widest = 256 if arch.capability in (90, 100) else 128
    if block_slots == ONE_TILE:
        widest = 32 if small else 64
    widest = min(widest, power_of_two(width))
    token_blocks = ceil_div(num_tokens, block_tokens)
    slot_tiles = batch * ceil_div(num_slots, block_slots)

    def cost(block_d: int) -> float:
        num_tiles = slot_tiles * ceil_div(width, block_d)
        return min(critical_paths(arch, num_tiles, token_blocks)) * (width + block_d)

    block_d = min([widest, *(each for each in (128, 64) if each < widest)], key=cost)
    return SlotAttentionTile(
        block_slots, block_tokens, block_k, block_d, 8, 4 if block_d <= 128 else 5
    )


SUM_COST = 1.7  # of storing and adding up the splits' sums, in token blocks


def critical_paths(arch: GpuArch, num_tiles: int, token_blocks: int) -> tuple[float, float]:
    """Token blocks in sequence: with all tokens in a program, and with a group of them."""
    num_groups, blocks_per_group = groups_of(token_blocks)
    waves = ceil_div(num_tiles * num_groups, arch.multiprocessors)
    return (
        ceil_div(num_tiles, arch.multiprocessors) * token_blocks,
        waves * (blocks_per_group + SUM_COST),
    )


def groups_of(token_blocks: int) -> tuple[int, int]:
    """Groups, and token blocks of each; they depend on the number of tokens alone."""
    blocks_per_group = ceil_div(token_blocks, MAX_GROUPS)
    return ceil_div(token_blocks, blocks_per_group), blocks_per_group


def logits_depth(arch: GpuArch, dtype: torch.dtype) -> int:
    """``block_k`` of every kernel that computes logits.

    One value for an architecture and dtype: logits that are compared with stored softmax statistics
    must have the bits of the logits that these were computed from.
    """
    if dtype == torch.float32:
        return 16
    return 32 if arch.shared_bytes < SMALL_SHARED else 64


def softmax_stats_tile(arch: GpuArch, dtype: torch.dtype) -> SlotAttentionTile:
    """The tile of the pass over all slots, one block after the other."""
    block_k = logits_depth(arch, dtype)
    if dtype == torch.float32:
        return SlotAttentionTile(BLOCK, 16, block_k, 0, 4, 2)
    return SlotAttentionTile(BLOCK, 32, block_k, 0, 8, 4)


def fills(arch: GpuArch, programs: int) -> bool:
    """Whether programs that take all tokens keep the GPU busy enough not to split the tokens."""
    return 5 * programs >= 2 * arch.multiprocessors


def bwd_in_single_tile(arch: GpuArch, dtype: torch.dtype, num_slots: int) -> bool:
    """Whether registers hold all slots, and what the three gradients need of them."""
    newer = arch.capability in (90, 100)
    return dtype != torch.float32 and num_slots <= (ONE_TILE if newer else BLOCK)


def slot_attention_bwd_tile(
    arch: GpuArch, dtype: torch.dtype, batch: int, num_slots: int, channels: int
) -> SlotAttentionTile:
    """The backward's tile: the widest ``block_d`` that gives most multiprocessors a program.

    Every block of channels recomputes the logits and the attention's gradient. Tokens are the rows
    of their own gradients, so there are as many as the newer matrix instructions need.
    """
    single_tile = bwd_in_single_tile(arch, dtype, num_slots)
    block_slots = power_of_two(num_slots) if single_tile else min(BLOCK, power_of_two(num_slots))
    block_k = logits_depth(arch, dtype)
    if dtype == torch.float32:
        return SlotAttentionTile(block_slots, 32, block_k, 32, 8, 3)
    widest = 128
    if block_slots == ONE_TILE:
        widest = 64
    elif single_tile and arch.capability == 90:
        widest = 256
    block_d = min(widest, power_of_two(channels))
    slot_tiles = batch * ceil_div(num_slots, block_slots)
    while block_d > 64 and 4 * slot_tiles * ceil_div(channels, block_d) < 3 * arch.multiprocessors:
        block_d //= 2
    block_tokens = 64 if arch.capability in (90, 100) else 32
    return SlotAttentionTile(block_slots, block_tokens, block_k, block_d, 8, 3)


def tokens_bwd_tile(arch: GpuArch, dtype: torch.dtype, channels: int) -> SlotAttentionTile:
    """The tile of the tokens' gradients, where they have a kernel of their own."""
    return slot_attention_bwd_tile(arch, dtype, 1, ONE_TILE + 1, channels)
