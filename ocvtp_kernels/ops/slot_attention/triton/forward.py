"""Launches the competition: the op ``ocvtp::slot_attention``, and the chain's iterations."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.ops.slot_attention.tiles import (
    MOST_GROUPS,
    ONE_TILE,
    PIECE_NUMBERS,
    SlotAttentionTile,
    groups_of,
    rounds,
    slot_attention_fwd_tile,
    softmax_stats_tile,
)
from ocvtp_kernels.ops.slot_attention.triton.compete import compete_kernel, softmax_stats_kernel
from ocvtp_kernels.triton_common.archs import arch_of
from ocvtp_kernels.triton_common.launch import dot_precision, launch, unit_stride
from ocvtp_kernels.triton_common.linear_tiles import ceil_div


class SlotAttentionArgs(NamedTuple):
    """Slots and the tokens that they compete for.

    Attributes:
        q: ``[B, K, D]``; k: ``[B, N, D]``; neighbours of the last dimension adjacent.
        scale: factor of the logits.
        constant: float32 ``[B, K]`` added to a slot's logits.
        mask: uint8 ``[B, K]``, 0 leaves the slot out.
    """

    q: Tensor
    k: Tensor
    scale: float = 1.0
    constant: Tensor | None = None
    mask: Tensor | None = None

    def arguments(self, tile: SlotAttentionTile) -> dict[str, Any]:
        """The arguments of every kernel that computes logits."""
        return {
            "q": self.q,
            "k": self.k,
            "slot_constant": self.q if self.constant is None else self.constant,
            "slot_mask": self.q if self.mask is None else self.mask,
            "num_slots": self.q.shape[1],
            "num_tokens": self.k.shape[1],
            "depth": self.q.shape[2],
            "scale": self.scale,
            "q_image_stride": self.q.stride(0),
            "q_row_stride": self.q.stride(1),
            "k_image_stride": self.k.stride(0),
            "k_row_stride": self.k.stride(1),
            "CONSTANT": self.constant is not None,
            "MASK": self.mask is not None,
            "BLOCK_SLOTS": tile.block_slots,
            "BLOCK_TOKENS": tile.block_tokens,
            "BLOCK_K": tile.block_k,
            "EVEN_K": self.q.shape[2] % tile.block_k == 0,
            "PRECISION": dot_precision(self.q.dtype),
        }


class Scratch(NamedTuple):
    """What the competition writes for itself; None where it needs none."""

    softmax_stats: Tensor | None  # float32 [B, N, 2]
    partial: Tensor | None  # float32, a tile a program
    partial_mass: Tensor | None  # float32
    arrivals: Tensor  # int32, all zero where programs share a part; left all zero


class Plan(NamedTuple):
    """How a competition is cut into programs; a function of shapes and GPU architecture alone."""

    tile: SlotAttentionTile
    parts: int  # images x slot blocks x chunks
    groups: int
    blocks_per_group: int
    shares: int  # programs that share a part: one, or one a group
    softmax_stats: bool

    @classmethod
    def of(cls, tile: SlotAttentionTile, fill: bool, sizes: tuple[int, int, int, int]) -> Plan:
        """The plan for ``(B, K, N, E)``; ``fill`` says not to split the tokens among programs."""
        batch, num_slots, num_tokens, width = sizes
        parts = batch * ceil_div(num_slots, tile.block_slots) * ceil_div(width, tile.block_d)
        blocks = ceil_div(num_tokens, tile.block_tokens)
        groups, blocks_per_group = groups_of(blocks)
        return cls(
            tile, parts, groups, blocks_per_group, 1 if fill else groups, num_slots > ONE_TILE
        )

    def partial_numbers(self) -> tuple[int, int, int]:
        """Sizes of `Scratch`'s partial, partial_mass and arrivals."""
        if self.shares == 1:
            return 0, 0, 0
        programs = self.parts * self.shares
        return (
            programs * self.tile.block_slots * self.tile.block_d,
            programs * self.tile.block_slots,
            self.parts,
        )


def plan(slots: Tensor, num_tokens: int, width: int) -> Plan:
    """The plan for slots ``[B, K, ...]`` that compete for values ``[B, num_tokens, width]``."""
    arch = arch_of(slots.device)
    batch, num_slots = slots.shape[:2]
    tile = slot_attention_fwd_tile(arch, slots.dtype, batch, num_slots, num_tokens, width)
    parts = batch * ceil_div(num_slots, tile.block_slots) * ceil_div(width, tile.block_d)
    alone, apart = rounds(arch, parts, ceil_div(num_tokens, tile.block_tokens))
    return Plan.of(tile, alone <= apart, (batch, num_slots, num_tokens, width))


def softmax_stats(competition: SlotAttentionArgs, out: Tensor) -> None:
    """Each token's largest logit and its rivals' sum: float32 ``[B, N, 2]``, in one launch."""
    batch, num_tokens, _ = competition.k.shape
    tile = softmax_stats_tile(arch_of(competition.q.device), competition.q.dtype)
    launch(
        softmax_stats_kernel,
        (batch * ceil_div(num_tokens, tile.block_tokens),),
        {**competition.arguments(tile), "softmax_stats": out},
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def compete(
    competition: SlotAttentionArgs,
    v: Tensor,
    mass_eps: float,
    updates: Tensor,
    mass: Tensor,
    cut: Plan,
    scratch: Scratch,
    attention: Tensor | None = None,
) -> None:
    """One competition, in one launch, or two where the slots are too many for a tile.

    Args:
        v: ``[B, N, E]``, neighbours of the last dimension adjacent.
        mass_eps: added to the mass.
        updates: ``[B, K, E]`` and mass: ``[B, K]``, contiguous, written.
        attention: ``[B, K, N]``, contiguous, written if given.
    """
    if cut.softmax_stats:
        assert scratch.softmax_stats is not None
        softmax_stats(competition, scratch.softmax_stats)
    absent = updates
    launch(
        compete_kernel,
        (cut.parts * cut.shares,),
        {
            **competition.arguments(cut.tile),
            "v": v,
            "softmax_stats": absent if scratch.softmax_stats is None else scratch.softmax_stats,
            "partial": absent if scratch.partial is None else scratch.partial,
            "partial_mass": absent if scratch.partial_mass is None else scratch.partial_mass,
            "arrivals": scratch.arrivals,
            "updates": updates,
            "mass": mass,
            "attention": absent if attention is None else attention,
            "width": v.shape[2],
            "mass_eps": mass_eps,
            "v_image_stride": v.stride(0),
            "v_row_stride": v.stride(1),
            "groups": cut.groups,
            "groups_per_program": ceil_div(cut.groups, cut.shares),
            "blocks_per_group": cut.blocks_per_group,
            "SOFTMAX_STATS": cut.softmax_stats,
            "ATTENTION": attention is not None,
            "CHUNK": cut.tile.block_d,
            "SHARES": MOST_GROUPS if cut.shares > 1 else 0,
            "PIECE": min(cut.tile.block_d, PIECE_NUMBERS // cut.tile.block_slots),
        },
        num_warps=cut.tile.num_warps,
        num_stages=cut.tile.num_stages,
    )


def new_scratch(cut: Plan, batch: int, num_tokens: int, device: torch.device) -> Scratch:
    """Scratch of its own for one competition."""
    partial, partial_mass, arrivals = cut.partial_numbers()
    numbers = torch.empty(partial + partial_mass, dtype=torch.float32, device=device)
    return Scratch(
        torch.empty((batch, num_tokens, 2), dtype=torch.float32, device=device)
        if cut.softmax_stats
        else None,
        numbers[:partial] if partial else None,
        numbers[partial:] if partial else None,
        (torch.zeros if arrivals else torch.empty)(arrivals or 1, dtype=torch.int32, device=device),
    )


def slot_attention_with_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    eps: float = 1e-5,
    slot_mask: Tensor | None = None,
    keep_attention: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """`ocvtp_kernels.ops.slot_attention.reference.slot_attention`; the attention is empty unless kept."""
    batch, num_slots, _ = q.shape
    num_tokens, width = v.shape[1:]
    mask = None if slot_mask is None else slot_mask.contiguous().view(torch.uint8)
    competition = SlotAttentionArgs(unit_stride(q), unit_stride(k), scale, mask=mask)
    cut = plan(q, num_tokens, width)
    updates = q.new_empty((batch, num_slots, width))
    mass = q.new_empty((batch, num_slots))
    attention = q.new_empty((batch, num_slots, num_tokens if keep_attention else 0))
    scratch = new_scratch(cut, batch, num_tokens, q.device)
    compete(
        competition,
        unit_stride(v),
        eps,
        updates,
        mass,
        cut,
        scratch,
        attention if keep_attention else None,
    )
    return updates, mass, attention


def slot_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    eps: float = 1e-5,
    slot_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`slot_attention_with_attention` without the attention: no ``[K, N]`` matrix in memory."""
    return slot_attention_with_attention(q, k, v, scale, eps, slot_mask, False)[:2]
