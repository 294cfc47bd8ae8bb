"""Each slot's best tokens: logits, softmax over slots and argmax over tokens in one pass.

A program stores the packed argmax of its block of tokens (`triton_common.packed_argmax`); a second
kernel, or the one that resolves, reduces over the blocks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.ops.slot_argmax.tiles import argmax_tile, reduce_tile
from ocvtp_kernels.ops.slot_attention.tiles import ONE_TILE
from ocvtp_kernels.ops.slot_attention.triton.forward import SlotAttentionArgs, softmax_stats
from ocvtp_kernels.ops.slot_attention.triton.logits import (
    clamp_index,
    load_softmax_stats,
    logits_tile,
    softmax_stats_of,
)
from ocvtp_kernels.triton_common.archs import arch_of
from ocvtp_kernels.triton_common.blocks import ceil_div
from ocvtp_kernels.triton_common.dependent import wait_for_launches_before
from ocvtp_kernels.triton_common.launch import launch, unit_stride
from ocvtp_kernels.triton_common.maths import log1p
from ocvtp_kernels.triton_common.packed_argmax import (
    pack_argmax,
    reduce_packed,
    unpack_score,
    unpack_token,
)
from ocvtp_kernels.triton_common.programs import block_of_image


@triton.jit
def argmax_kernel(
    q, k, slot_constant, slot_mask, softmax_stats, upper_bound, packed_topk, token_score,
    num_slots, num_tokens, depth, scale,
    q_image_stride, q_row_stride, k_image_stride, k_row_stride,
    CONSTANT: tl.constexpr, MASK: tl.constexpr, SOFTMAX_STATS: tl.constexpr,
    UPPER_BOUND: tl.constexpr, TOKEN_SCORE: tl.constexpr, BLOCK_SLOTS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Packed argmax int64 ``[B, token blocks, K]`` of each block; token_score float32 ``[B, N]``.

    With UPPER_BOUND only packed values below ``upper_bound`` ``[B, K]`` count: the next rank.
    ``token_score`` is a token's largest log-attention over slots.
    """
    wait_for_launches_before(PDL)
    num_blocks = tl.cdiv(num_tokens, BLOCK_TOKENS)
    slot_blocks = tl.cdiv(num_slots, BLOCK_SLOTS)
    block = tl.program_id(0) % num_blocks
    slot_block = (tl.program_id(0) // num_blocks) % slot_blocks
    image = (tl.program_id(0) // (num_blocks * slot_blocks)).to(tl.int64)
    slot = slot_block * BLOCK_SLOTS + tl.arange(0, BLOCK_SLOTS)
    token = block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    mask_slot = slot < num_slots
    mask_token = token < num_tokens
    offs_slot = image * num_slots + slot
    q_row = q + image * q_image_stride + clamp_index(slot, num_slots) * q_row_stride
    k_row = k + image * k_image_stride + clamp_index(token, num_tokens) * k_row_stride
    rows, masks = (q_row, k_row), (mask_slot, mask_token)
    terms = (slot_constant + offs_slot, slot_mask + offs_slot)
    logits = logits_tile(
        rows, masks, terms, depth, scale, CONSTANT, MASK, BLOCK_K, EVEN_K, PRECISION
    )
    if SOFTMAX_STATS:
        stats = softmax_stats + (image * num_tokens + token) * 2
        row_max, rest_sum = load_softmax_stats(stats, mask_token)
    else:
        row_max, rest_sum = softmax_stats_of(logits)
    log_sum = log1p(rest_sum)
    score = (logits - row_max[None, :]) - log_sum[None, :]
    packed = pack_argmax(score, token[None, :])
    valid = mask_slot[:, None] & mask_token[None, :]
    if UPPER_BOUND:
        bound = tl.load(upper_bound + offs_slot, mask=mask_slot, other=0)
        valid = valid & (packed < bound[:, None])
    best = tl.max(tl.where(valid, packed, -1), axis=1)
    tl.store(packed_topk + (image * num_blocks + block) * num_slots + slot, best, mask=mask_slot)
    if TOKEN_SCORE:
        if slot_block == 0:
            # row_max - row_max is 0, or NaN where the largest logit is infinite, as every score is.
            largest = (row_max - row_max) - log_sum
            tl.store(token_score + image * num_tokens + token, largest, mask=mask_token)


@triton.jit
def argmax_reduce_kernel(
    packed_topk, best, ids, max_prob,
    num_blocks, num_slots, rank, top_k,
    UNPACK: tl.constexpr, LOG: tl.constexpr, BLOCK_SLOTS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr, UNROLL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Packed argmax over token blocks: row ``rank`` of int64 ``[B, top_k, K]``.

    With UNPACK the id and its attention instead, or with LOG the attention's logarithm. One program
    takes a block of slots of an image.
    """
    wait_for_launches_before(PDL)
    image, slot, mask_slot = block_of_image(num_slots, BLOCK_SLOTS)
    of_image = packed_topk + image * num_blocks * num_slots
    packed = reduce_packed(of_image, slot, mask_slot, num_blocks, num_slots, BLOCK_PARTIALS, UNROLL)
    if UNPACK:
        offs_slot = image * num_slots + slot
        tl.store(ids + offs_slot, unpack_token(packed), mask=mask_slot)
        score = unpack_score(packed)
        if not LOG:
            score = tl.exp(score)
        tl.store(max_prob + offs_slot, score.to(max_prob.dtype.element_ty), mask=mask_slot)
    else:
        tl.store(best + (image * top_k + rank) * num_slots + slot, packed, mask=mask_slot)


def packed_topk_of(
    args: SlotAttentionArgs, top_k: int, with_token_score: bool, stats: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The slots' best tokens, packed, and the tokens' scores if asked for: one argmax a rank.

    Args:
        args: the last iteration's slots and tokens.
        stats: float32 ``[B, N, 2]`` to hold the softmax statistics, where there are many slots.

    Returns:
        packed_topk int64: the best of each token block ``[B, blocks, K]`` where top_k is 1, else
        the best of each rank ``[B, top_k, K]``; token_score float32 ``[B, N]`` or None.
    """
    q, k = args.q, args.k
    batch, num_slots, _ = q.shape
    num_tokens, device = k.shape[1], q.device
    tile = argmax_tile(arch_of(device), q.dtype, num_slots)
    num_blocks = ceil_div(num_tokens, tile.block_tokens)
    use_stats = num_slots > ONE_TILE
    if use_stats:
        if stats is None:
            stats = torch.empty((batch, num_tokens, 2), dtype=torch.float32, device=device)
        softmax_stats(args, stats)
    partial = torch.empty((batch, num_blocks, num_slots), dtype=torch.int64, device=device)
    best = partial if top_k == 1 else partial.new_empty((batch, top_k, num_slots))
    token_score = (
        torch.empty((batch, num_tokens), dtype=torch.float32, device=device)
        if with_token_score
        else None
    )
    upper_bound = partial
    for rank in range(top_k):
        launch(
            argmax_kernel,
            (batch * ceil_div(num_slots, tile.block_slots) * num_blocks,),
            {
                **args.arguments(tile),
                "softmax_stats": q if stats is None else stats,
                "upper_bound": upper_bound,
                "packed_topk": partial,
                "token_score": q if token_score is None else token_score,
                "SOFTMAX_STATS": use_stats,
                "UPPER_BOUND": rank > 0,
                "TOKEN_SCORE": with_token_score and rank == 0,
            },
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
        if top_k > 1:
            _reduce(partial, best, None, None, rank)
            upper_bound = best[:, rank].contiguous()
    return best, token_score


def _reduce(
    packed_topk: Tensor,
    best: Tensor,
    ids: Tensor | None,
    max_prob: Tensor | None,
    rank: int = 0,
    log: bool = False,
) -> None:
    """From ``[B, blocks, K]`` row ``rank`` of ``best`` ``[B, top_k, K]``, or ids and max_prob."""
    batch, num_blocks, num_slots = packed_topk.shape
    num_warps = 4
    tile = reduce_tile(num_slots, num_blocks, num_warps, 32)
    launch(
        argmax_reduce_kernel,
        (batch * ceil_div(num_slots, tile.block_slots),),
        {
            "packed_topk": packed_topk,
            "best": best,
            "ids": packed_topk if ids is None else ids,
            "max_prob": packed_topk if max_prob is None else max_prob,
            "num_blocks": num_blocks,
            "num_slots": num_slots,
            "rank": rank,
            "top_k": best.shape[1],
            "UNPACK": ids is not None,
            "LOG": log,
            "BLOCK_SLOTS": tile.block_slots,
            "BLOCK_PARTIALS": tile.block_partials,
            "UNROLL": tile.unroll,
        },
        num_warps=num_warps,
    )


def topk_of(
    args: SlotAttentionArgs, top_k: int, stats: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """topk_ids ``[B, K, top_k]``, max_logprob ``[B, K]`` and token_score ``[B, N]``."""
    packed_topk, token_score = packed_topk_of(args, top_k, True, stats)
    assert token_score is not None
    batch, num_slots, _ = args.q.shape
    ids = packed_topk.new_empty((top_k, batch, num_slots))
    logprob = token_score.new_empty((top_k, batch, num_slots))
    for rank in range(top_k):
        ranked = packed_topk if top_k == 1 else packed_topk[:, rank : rank + 1].contiguous()
        _reduce(ranked, ranked, ids[rank], logprob[rank], log=True)
    return ids.permute(1, 2, 0).contiguous(), logprob[0], token_score


def slot_argmax(q: Tensor, k: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """`ocvtp::slot_argmax` without a ``[K, N]`` attention in memory."""
    packed_topk, _ = packed_topk_of(args_of(q, k, scale), 1, False)
    ids = packed_topk.new_empty(q.shape[:2])
    max_prob = q.new_empty(q.shape[:2])
    _reduce(packed_topk, packed_topk, ids, max_prob)
    return ids, max_prob


def args_of(q: Tensor, k: Tensor, scale: float | None) -> SlotAttentionArgs:
    """Slots ``[B, K, D]`` and tokens ``[B, N, D]`` for the kernels; ``D**-0.5`` if no scale."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return SlotAttentionArgs(unit_stride(q), unit_stride(k), scale)
