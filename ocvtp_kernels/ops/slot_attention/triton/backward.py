"""Launches the competition's gradients: the op ``ocvtp::slot_attention_backward``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.ops.slot_attention.tiles import (
    PIECE_NUMBERS,
    SlotAttentionTile,
    compete_backward_tile,
    fills,
    one_backward_tile,
    softmax_stats_tile,
    tokens_backward_tile,
)
from ocvtp_kernels.ops.slot_attention.triton.backward_compete import compete_backward_kernel
from ocvtp_kernels.ops.slot_attention.triton.backward_tokens import (
    deltas_kernel,
    mean_gradients_kernel,
    tokens_backward_kernel,
)
from ocvtp_kernels.ops.slot_attention.triton.forward import (
    Plan,
    SlotAttentionArgs,
    compete,
    new_scratch,
    softmax_stats,
)
from ocvtp_kernels.ops.slot_attention.triton.forward import plan as forward_plan
from ocvtp_kernels.triton_common.archs import arch_of
from ocvtp_kernels.triton_common.launch import dot_precision, launch, unit_stride
from ocvtp_kernels.triton_common.linear_tiles import ceil_div

FEW_TOKENS = 16  # which any tile holds
PIECE = 64  # channels of the tokens' gradients at a time
PAIR = 64 * 128  # most numbers of which registers hold a group's sum beside that of all groups
MOST_GROUPS = 5  # of tokens: fewer than forward, since each may be a round through memory


class Backward(NamedTuple):
    """What is differentiated.

    Attributes:
        competition: q ``[B, K, D]``, k ``[B, N, D]``, scale and mask.
        v: ``[B, N, E]``, neighbours of the last dimension adjacent.
        mass_eps: added to the mass.
        mass: ``[B, K]``; updates, grad_updates: ``[B, K, E]``; grad_mass: ``[B, K]``; contiguous.
        grad_attention: ``[B, K, N]`` of any strides, or None.
        softmax_stats: float32 ``[B, N, 2]``, and
        delta: float32 ``[B, K]``, and
        mean_gradients: float32 ``[B, N]``; where one tile does not hold all slots.
    """

    competition: SlotAttentionArgs
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
        q, k, scale, _, mask = self.competition
        given, absent = self.grad_attention, self.mass
        strides = (0, 0, 0) if given is None else given.stride()
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
            "grad_attention": absent if given is None else given,
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
            "given_image_stride": strides[0],
            "given_row_stride": strides[1],
            "given_column_stride": strides[2],
            "MASK": mask is not None,
            "GIVEN": given is not None,
            "WHOLE": k.shape[1] <= FEW_TOKENS,
            "BLOCK_SLOTS": tile.block_slots,
            "BLOCK_TOKENS": tile.block_tokens,
            "BLOCK_K": tile.block_k,
            "PRECISION": dot_precision(q.dtype),
        }


def plan(slots: Tensor, num_tokens: int, width: int) -> Plan:
    """The plan of the gradient of slots ``[B, K, D]``, and of tokens where one tile holds them."""
    arch = arch_of(slots.device)
    batch, num_slots, depth = slots.shape
    together = one_backward_tile(arch, slots.dtype, num_slots)
    channels = max(depth, width) if together else depth
    tile = compete_backward_tile(arch, slots.dtype, batch, num_slots, channels)
    parts = batch * ceil_div(num_slots, tile.block_slots) * ceil_div(channels, tile.block_d)
    blocks = ceil_div(num_tokens, tile.block_tokens)
    blocks_per_group = ceil_div(blocks, MOST_GROUPS)
    groups = ceil_div(blocks, blocks_per_group)
    shares = 1 if fills(arch, parts) else groups
    return Plan(tile, parts, groups, blocks_per_group, shares, not together)


def masses(competition: SlotAttentionArgs, eps: float) -> Tensor:
    """The mass float32 ``[B, K]``, by a competition for one channel."""
    q, k = competition.q, competition.k
    channel = k[..., :1]
    cut = forward_plan(q, k.shape[1], 1)
    mass = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    scratch = new_scratch(cut, q.shape[0], k.shape[1], q.device)
    compete(competition, channel, eps, torch.empty_like(mass), mass, cut, scratch)
    return mass


def with_passes(backward: Backward) -> Backward:
    """What the slots of several tiles must know of one another, in three launches."""
    q = backward.competition.q
    batch, num_slots, _ = q.shape
    num_tokens, width = backward.v.shape[1:]
    arch = arch_of(q.device)
    numbers = q.new_empty((batch * (num_slots + 3 * num_tokens),), dtype=torch.float32)
    delta, pairs, means = numbers.split(
        [batch * num_slots, 2 * batch * num_tokens, batch * num_tokens]
    )
    backward = backward._replace(softmax_stats=pairs, delta=delta, mean_gradients=means)
    softmax_stats(backward.competition, pairs)
    tile = softmax_stats_tile(arch, q.dtype)
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


def slot_attention_gradients(
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
    """`ocvtp_kernels.ops.slot_attention.gradients.slot_attention_gradients`; nothing stored is ``[K, N]``."""
    batch, _, depth = q.shape
    num_tokens, width = v.shape[1:]
    mask = None if slot_mask is None else slot_mask.contiguous().view(torch.uint8)
    competition = SlotAttentionArgs(unit_stride(q), unit_stride(k), scale, mask=mask)
    backward = Backward(
        competition,
        unit_stride(v),
        eps,
        masses(competition, eps) if mass is None else mass.contiguous(),
        updates.contiguous(),
        grad_updates.contiguous(),
        grad_mass.contiguous(),
        grad_attention,
    )
    grad_q, grad_k, grad_v = (
        torch.empty(tensor.shape, dtype=q.dtype, device=q.device) for tensor in (q, k, v)
    )
    cut = plan(q, num_tokens, width)
    if cut.softmax_stats:
        backward = with_passes(backward)
        tile = tokens_backward_tile(arch_of(q.device), q.dtype, max(depth, width))
        programs = ceil_div(num_tokens, tile.block_tokens) * ceil_div(
            max(depth, width), tile.block_d
        )
        launch(
            tokens_backward_kernel,
            (batch * programs,),
            {
                **backward.arguments(tile),
                "grad_k": grad_k,
                "grad_v": grad_v,
                "CHUNK": tile.block_d,
            },
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    partial, _, arrivals = cut.partial_numbers()
    parked = cut.shares == 1 and cut.tile.block_slots * cut.tile.block_d > PAIR
    if parked:
        partial = cut.parts * cut.tile.block_slots * cut.tile.block_d
    count = torch.zeros if arrivals else torch.empty
    launch(
        compete_backward_kernel,
        (cut.parts * cut.shares,),
        {
            **backward.arguments(cut.tile),
            "updates": backward.updates,
            "partial": torch.empty(partial, dtype=torch.float32, device=q.device),
            "arrivals": count(arrivals or 1, dtype=torch.int32, device=q.device),
            "grad_q": grad_q,
            "grad_k": grad_k,
            "grad_v": grad_v,
            "groups": cut.groups,
            "groups_per_program": ceil_div(cut.groups, cut.shares),
            "blocks_per_group": cut.blocks_per_group,
            "SOFTMAX_STATS": cut.softmax_stats,
            "PARKED": parked,
            "CHUNK": cut.tile.block_d,
            "PIECE": min(cut.tile.block_d, PIECE),
            "SHARES": MOST_GROUPS if cut.shares > 1 else 0,
            "SUM_PIECE": min(cut.tile.block_d, PIECE_NUMBERS // cut.tile.block_slots),
        },
        num_warps=cut.tile.num_warps,
        num_stages=cut.tile.num_stages,
    )
    return grad_q, grad_k, grad_v
