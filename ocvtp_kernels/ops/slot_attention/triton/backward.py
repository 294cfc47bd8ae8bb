"""Launches slot attention's gradients: the op ``ocvtp::slot_attention_backward``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.ops.slot_attention.tiles import (
    SUM_ELEMENTS,
    SlotAttentionTile,
    bwd_in_single_tile,
    fills,
    slot_attention_bwd_tile,
    softmax_stats_tile,
    tokens_bwd_tile,
)
from ocvtp_kernels.ops.slot_attention.triton.backward_kernels import (
    deltas_kernel,
    mean_gradients_kernel,
    slot_attention_bwd_kernel,
    tokens_backward_kernel,
)
from ocvtp_kernels.ops.slot_attention.triton.forward import (
    SlotAttentionArgs,
    SplitPlan,
    new_split_workspace,
    slot_attention_fwd,
    softmax_stats,
    split_plan,
)
from ocvtp_kernels.triton_common.archs import arch_of
from ocvtp_kernels.triton_common.blocks import ceil_div
from ocvtp_kernels.triton_common.launch import dot_precision, launch, unit_stride

FEW_TOKENS = 16  # every tile holds as many
STORE_CHANNELS = 64  # of the tokens' gradients, computed and stored at a time
TWO_ACC_ELEMENTS = 64 * 128  # largest tile whose two accumulators fit the registers
MAX_GROUPS = 5  # of tokens; fewer than in the forward, as the sum of each may go through memory


class Backward(NamedTuple):
    """Inputs of the backward kernels.

    Attributes:
        args: q ``[B, K, D]``, k ``[B, N, D]``, scale and mask.
        v: ``[B, N, E]``, last dimension contiguous.
        mass_eps: added to the mass.
        mass: ``[B, K]``; updates, grad_updates: ``[B, K, E]``; grad_mass: ``[B, K]``; contiguous.
        grad_attention: ``[B, K, N]`` of any strides, or None.
        softmax_stats: float32 ``[B, N, 2]``; delta: float32 ``[B, K]``; mean_gradients: float32
            ``[B, N]``; where one tile does not hold all slots.
    """

    args: SlotAttentionArgs
    v: Tensor
    mass_eps: float
    mass: Tensor
    updates: Tensor
    grad_updates: Tensor
    grad_mass: Tensor
    grad_attention: Tensor | None
    softmax_stats: Tensor | None = None
    delta: Tensor | None = None
    mean_gradients: Tensor | None = None

    def arguments(self, tile: SlotAttentionTile) -> dict[str, Any]:
        """The arguments that all three kernels take."""
        q, k, scale, _, mask = self.args
        dattn, absent = self.grad_attention, self.mass
        strides = (0, 0, 0) if dattn is None else dattn.stride()
        return {
            "q": q,
            "k": k,
            "v": self.v,
            "slot_mask": absent if mask is None else mask,
            "softmax_stats": absent if self.softmax_stats is None else self.softmax_stats,
            "delta": absent if self.delta is None else self.delta,
            "mass": self.mass,
            "grad_updates": self.grad_updates,
            "grad_mass": self.grad_mass,
            "grad_attention": absent if dattn is None else dattn,
            "mean_gradients": absent if self.mean_gradients is None else self.mean_gradients,
            "num_slots": q.shape[1],
            "num_tokens": k.shape[1],
            "depth": q.shape[2],
            "width": self.v.shape[2],
            "scale": scale,
            "mass_eps": self.mass_eps,
            "q_image_stride": q.stride(0),
            "q_row_stride": q.stride(1),
            "k_image_stride": k.stride(0),
            "k_row_stride": k.stride(1),
            "v_image_stride": self.v.stride(0),
            "v_row_stride": self.v.stride(1),
            "dattn_image_stride": strides[0],
            "dattn_row_stride": strides[1],
            "dattn_column_stride": strides[2],
            "MASK": mask is not None,
            "HAS_DATTN": dattn is not None,
            "SINGLE_BLOCK": k.shape[1] <= FEW_TOKENS,
            "BLOCK_SLOTS": tile.block_slots,
            "BLOCK_TOKENS": tile.block_tokens,
            "BLOCK_K": tile.block_k,
            "PRECISION": dot_precision(q.dtype),
        }


def bwd_split_plan(slots: Tensor, num_tokens: int, width: int) -> SplitPlan:
    """The plan for gradients of slots ``[B, K, D]``, and of tokens if one tile holds all slots."""
    arch = arch_of(slots.device)
    batch, num_slots, depth = slots.shape
    single_tile = bwd_in_single_tile(arch, slots.dtype, num_slots)
    channels = max(depth, width) if single_tile else depth
    tile = slot_attention_bwd_tile(arch, slots.dtype, batch, num_slots, channels)
    num_tiles = batch * ceil_div(num_slots, tile.block_slots) * ceil_div(channels, tile.block_d)
    token_blocks = ceil_div(num_tokens, tile.block_tokens)
    blocks_per_group = ceil_div(token_blocks, MAX_GROUPS)
    num_groups = ceil_div(token_blocks, blocks_per_group)
    num_splits = 1 if fills(arch, num_tiles) else num_groups
    return SplitPlan(tile, num_tiles, num_groups, blocks_per_group, num_splits, not single_tile)


def mass_of(args: SlotAttentionArgs, eps: float) -> Tensor:
    """The mass float32 ``[B, K]``, by a forward with a single channel of values."""
    q, k = args.q, args.k
    split = split_plan(q, k.shape[1], 1)
    mass = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    space = new_split_workspace(split, q.shape[0], k.shape[1], q.device)
    slot_attention_fwd(args, k[..., :1], eps, torch.empty_like(mass), mass, split, space)
    return mass


def with_passes(backward: Backward) -> Backward:
    """With softmax_stats, delta and mean_gradients, which span several tiles, in three launches."""
    q = backward.args.q
    batch, num_slots, _ = q.shape
    num_tokens, width = backward.v.shape[1:]
    memory = q.new_empty((batch * (num_slots + 3 * num_tokens),), dtype=torch.float32)
    delta, stats, mean_gradients = memory.split(
        [batch * num_slots, 2 * batch * num_tokens, batch * num_tokens]
    )
    backward = backward._replace(softmax_stats=stats, delta=delta, mean_gradients=mean_gradients)
    softmax_stats(backward.args, stats)
    tile = softmax_stats_tile(arch_of(q.device), q.dtype)
    launch(
        deltas_kernel,
        (ceil_div(batch * num_slots, tile.block_slots),),
        {
            "updates": backward.updates,
            "grad_updates": backward.grad_updates,
            "delta": delta,
            "rows": batch * num_slots,
            "width": width,
            "BLOCK_SLOTS": tile.block_slots,
            "BLOCK_K": tile.block_k,
        },
        num_warps=4,
    )
    launch(
        mean_gradients_kernel,
        (batch * ceil_div(num_tokens, tile.block_tokens),),
        backward.arguments(tile),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return backward


def slot_attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    eps: float,
    slot_mask: Tensor | None,
    updates: Tensor,
    grad_updates: Tensor,
    grad_mass: Tensor,
    grad_attention: Tensor | None,
    mass: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The attention is recomputed; nothing of its size ``[K, N]`` is stored."""
    batch, _, depth = q.shape
    num_tokens, width = v.shape[1:]
    mask = None if slot_mask is None else slot_mask.contiguous().view(torch.uint8)
    args = SlotAttentionArgs(unit_stride(q), unit_stride(k), scale, mask=mask)
    backward = Backward(
        args,
        unit_stride(v),
        eps,
        mass_of(args, eps) if mass is None else mass.contiguous(),
        updates.contiguous(),
        grad_updates.contiguous(),
        grad_mass.contiguous(),
        grad_attention,
    )
    grad_q, grad_k, grad_v = (
        torch.empty(tensor.shape, dtype=q.dtype, device=q.device) for tensor in (q, k, v)
    )
    split = bwd_split_plan(q, num_tokens, width)
    if split.softmax_stats:
        backward = with_passes(backward)
        channels = max(depth, width)
        tile = tokens_bwd_tile(arch_of(q.device), q.dtype, channels)
        programs = ceil_div(num_tokens, tile.block_tokens) * ceil_div(channels, tile.block_d)
        launch(
            tokens_backward_kernel,
            (batch * programs,),
            {
                **backward.arguments(tile),
                "grad_k": grad_k,
                "grad_v": grad_v,
                "BLOCK_D": tile.block_d,
            },
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    tile = split.tile
    partial_acc, _, semaphore = split.workspace_sizes()
    elements = tile.block_slots * tile.block_d
    acc_in_global = split.num_splits == 1 and elements > TWO_ACC_ELEMENTS
    if acc_in_global:
        partial_acc = split.num_tiles * elements
    zeros = torch.zeros if semaphore else torch.empty
    launch(
        slot_attention_bwd_kernel,
        (split.num_tiles * split.num_splits,),
        {
            **backward.arguments(tile),
            "updates": backward.updates,
            "partial_acc": torch.empty(partial_acc, dtype=torch.float32, device=q.device),
            "semaphore": zeros(semaphore or 1, dtype=torch.int32, device=q.device),
            "grad_q": grad_q,
            "grad_k": grad_k,
            "grad_v": grad_v,
            "num_groups": split.num_groups,
            "groups_per_program": ceil_div(split.num_groups, split.num_splits),
            "blocks_per_group": split.blocks_per_group,
            "SOFTMAX_STATS": split.softmax_stats,
            "ACC_IN_GLOBAL": acc_in_global,
            "BLOCK_D": tile.block_d,
            "BLOCK_D_STORE": min(tile.block_d, STORE_CHANNELS),
            "MAX_SPLITS": MAX_GROUPS if split.num_splits > 1 else 0,
            "BLOCK_D_SUM": min(tile.block_d, SUM_ELEMENTS // tile.block_slots),
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return grad_q, grad_k, grad_v
