"""Launches slot attention's forward: the op ``ocvtp::slot_attention``, and prune's iterations."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.ops.slot_attention.tiles import (
    MAX_GROUPS,
    ONE_TILE,
    SUM_ELEMENTS,
    SlotAttentionTile,
    critical_paths,
    groups_of,
    slot_attention_fwd_tile,
    softmax_stats_tile,
)
from ocvtp_kernels.ops.slot_attention.triton.forward_kernels import (
    slot_attention_fwd_kernel,
    softmax_stats_kernel,
)
from ocvtp_kernels.triton_common.archs import arch_of
from ocvtp_kernels.triton_common.blocks import ceil_div
from ocvtp_kernels.triton_common.launch import dot_precision, launch, unit_stride


class SlotAttentionArgs(NamedTuple):
    """What the logits of slot attention are computed from.

    Attributes:
        q: ``[B, K, D]``; k: ``[B, N, D]``; last dimension contiguous.
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


class SplitWorkspace(NamedTuple):
    """What the launches write for themselves; None where the `SplitPlan` needs none.

    Attributes:
        semaphore: int32, one per output tile that is split, all zero; left all zero.
        softmax_stats: float32 ``[B, N, 2]``, row_max and rest_sum of each token.
        partial_acc: float32, ``block_slots * block_d`` elements of each split.
        partial_mass: float32, ``block_slots`` elements of each split.
    """

    semaphore: Tensor
    softmax_stats: Tensor | None
    partial_acc: Tensor | None
    partial_mass: Tensor | None


class SplitPlan(NamedTuple):
    """How the work is split into programs; it depends on shapes and architecture alone.

    Attributes:
        num_tiles: output tiles: images x blocks of slots x blocks of channels.
        num_groups: groups of tokens, whose sums are added in order.
        blocks_per_group: blocks of tokens.
        num_splits: programs per output tile: 1, or one per group.
        softmax_stats: whether a first pass stores the softmax statistics.
    """

    tile: SlotAttentionTile
    num_tiles: int
    num_groups: int
    blocks_per_group: int
    num_splits: int
    softmax_stats: bool

    @classmethod
    def of(
        cls, tile: SlotAttentionTile, whole: bool, sizes: tuple[int, int, int, int]
    ) -> SplitPlan:
        """The plan for ``(B, K, N, E)``; ``whole`` gives a program all tokens."""
        batch, num_slots, num_tokens, width = sizes
        num_tiles = batch * ceil_div(num_slots, tile.block_slots) * ceil_div(width, tile.block_d)
        num_groups, blocks_per_group = groups_of(ceil_div(num_tokens, tile.block_tokens))
        num_splits = 1 if whole else num_groups
        return cls(tile, num_tiles, num_groups, blocks_per_group, num_splits, num_slots > ONE_TILE)

    def workspace_sizes(self) -> tuple[int, int, int]:
        """Elements of partial_acc, partial_mass and semaphore."""
        if self.num_splits == 1:
            return 0, 0, 0
        slots = self.num_tiles * self.num_splits * self.tile.block_slots
        return slots * self.tile.block_d, slots, self.num_tiles


def split_plan(slots: Tensor, num_tokens: int, width: int) -> SplitPlan:
    """The plan for slots ``[B, K, ...]`` and values ``[B, num_tokens, width]``."""
    arch = arch_of(slots.device)
    batch, num_slots = slots.shape[:2]
    sizes = batch, num_slots, num_tokens, width
    tile = slot_attention_fwd_tile(arch, slots.dtype, *sizes)
    plan = SplitPlan.of(tile, True, sizes)
    token_blocks = ceil_div(num_tokens, tile.block_tokens)
    whole, split = critical_paths(arch, plan.num_tiles, token_blocks)
    return plan if whole <= split else plan._replace(num_splits=plan.num_groups)


def softmax_stats(args: SlotAttentionArgs, out: Tensor) -> None:
    """row_max and rest_sum of each token, into ``out`` float32 ``[B, N, 2]``, in one launch."""
    batch, num_tokens, _ = args.k.shape
    tile = softmax_stats_tile(arch_of(args.q.device), args.q.dtype)
    launch(
        softmax_stats_kernel,
        (batch * ceil_div(num_tokens, tile.block_tokens),),
        {**args.arguments(tile), "softmax_stats": out},
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def slot_attention_fwd(
    args: SlotAttentionArgs,
    v: Tensor,
    mass_eps: float,
    updates: Tensor,
    mass: Tensor,
    split: SplitPlan,
    space: SplitWorkspace,
    attention: Tensor | None = None,
) -> None:
    """One launch, or two where one tile does not hold all slots.

    Args:
        v: ``[B, N, E]``, last dimension contiguous.
        mass_eps: added to the mass.
        updates: ``[B, K, E]`` and mass: ``[B, K]``, contiguous, written.
        attention: ``[B, K, N]``, contiguous, written if given.
    """
    if split.softmax_stats:
        assert space.softmax_stats is not None
        softmax_stats(args, space.softmax_stats)
    absent, tile = updates, split.tile
    launch(
        slot_attention_fwd_kernel,
        (split.num_tiles * split.num_splits,),
        {
            **args.arguments(tile),
            "v": v,
            "softmax_stats": absent if space.softmax_stats is None else space.softmax_stats,
            "partial_acc": absent if space.partial_acc is None else space.partial_acc,
            "partial_mass": absent if space.partial_mass is None else space.partial_mass,
            "semaphore": space.semaphore,
            "updates": updates,
            "mass": mass,
            "attention": absent if attention is None else attention,
            "width": v.shape[2],
            "mass_eps": mass_eps,
            "v_image_stride": v.stride(0),
            "v_row_stride": v.stride(1),
            "num_groups": split.num_groups,
            "groups_per_program": ceil_div(split.num_groups, split.num_splits),
            "blocks_per_group": split.blocks_per_group,
            "SOFTMAX_STATS": split.softmax_stats,
            "ATTENTION": attention is not None,
            "BLOCK_D": tile.block_d,
            "MAX_SPLITS": MAX_GROUPS if split.num_splits > 1 else 0,
            "BLOCK_D_SUM": min(tile.block_d, SUM_ELEMENTS // tile.block_slots),
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def new_split_workspace(
    split: SplitPlan, batch: int, num_tokens: int, device: torch.device
) -> SplitWorkspace:
    """The workspace of one forward."""
    acc, mass, semaphore = split.workspace_sizes()
    partial = torch.empty(acc + mass, dtype=torch.float32, device=device)
    zeros = torch.zeros if semaphore else torch.empty
    stats = (batch, num_tokens, 2) if split.softmax_stats else None
    return SplitWorkspace(
        zeros(semaphore or 1, dtype=torch.int32, device=device),
        None if stats is None else torch.empty(stats, dtype=torch.float32, device=device),
        partial[:acc] if acc else None,
        partial[acc:] if acc else None,
    )


def slot_attention_with_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    eps: float = 1e-5,
    slot_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel of `slot_attention`, which stores the attention besides."""
    attention = q.new_empty((*q.shape[:2], v.shape[1]))
    return (*_slot_attention(q, k, v, scale, eps, slot_mask, attention), attention)


def slot_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    eps: float = 1e-5,
    slot_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One pass over the tokens; the attention ``[B, K, N]`` is never stored."""
    return _slot_attention(q, k, v, scale, eps, slot_mask, None)


def _slot_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    eps: float,
    slot_mask: Tensor | None,
    attention: Tensor | None,
) -> tuple[Tensor, Tensor]:
    batch, num_slots, _ = q.shape
    num_tokens, width = v.shape[1:]
    mask = None if slot_mask is None else slot_mask.contiguous().view(torch.uint8)
    args = SlotAttentionArgs(unit_stride(q), unit_stride(k), scale, mask=mask)
    split = split_plan(q, num_tokens, width)
    updates = q.new_empty((batch, num_slots, width))
    mass = q.new_empty((batch, num_slots))
    space = new_split_workspace(split, batch, num_tokens, q.device)
    slot_attention_fwd(args, unit_stride(v), eps, updates, mass, split, space, attention)
    return updates, mass
