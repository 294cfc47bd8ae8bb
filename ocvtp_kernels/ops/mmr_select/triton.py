"""Greedy maximal marginal relevance, one program an image and all picks in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.triton_common.greedy import best_token, load_row, nan_last, times
from ocvtp_kernels.triton_common.greedy_tiles import greedy_tile
from ocvtp_kernels.triton_common.launch import launch, unit_stride
from ocvtp_kernels.triton_common.packed_argmax import unpack_token


@triton.jit(do_not_specialize=["budget"])
def mmr_kernel(
    relevance, similarity, order,
    num_tokens, budget,
    relevance_stride, image_stride, row_stride,
    relevance_weight, similarity_weight,
    BLOCK_TOKENS: tl.constexpr,
):  # fmt: skip
    """Order int64 ``[B, T]``.

    A score only falls as the largest similarity grows, and rounds monotonically: the least of a
    token's scores against each pick is its score against the pick most similar to it.
    """
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK_TOKENS)
    mask = token < num_tokens
    similarity += image * image_stride
    order += image * budget
    own = tl.load(relevance + image * relevance_stride + token, mask=mask, other=0.0)
    own = own.to(tl.float32)
    free = mask
    pick = unpack_token(best_token(own, token, free))
    tl.store(order, pick)
    # Triton's interpreter passes a double, which may be too small for a float.
    relevance_weight = tl.cast(relevance_weight, tl.float32)
    own = tl.where(relevance_weight > 0.0, times(relevance_weight, own), 0.0)
    # At weight 0 no row is read: all zeros, where 0 times infinity were NaN.
    mask_row = mask & (similarity_weight > 0.0)
    running = tl.full([BLOCK_TOKENS], float("inf"), tl.float32)
    for step in range(1, budget):
        row = load_row(similarity, pick, row_stride, token, mask_row, 0.0)
        running = tl.minimum(running, nan_last(own - times(similarity_weight, row)))
        free = free & (token != pick)
        pick = unpack_token(best_token(running, token, free))
        tl.store(order + step, pick)


def mmr_select(
    relevance: Tensor, similarity: Tensor, budget: int, trade_off: float = 0.5
) -> Tensor:
    """`ocvtp::mmr_select` in one launch."""
    relevance, similarity = unit_stride(relevance), unit_stride(similarity)
    batch, num_tokens, _ = similarity.shape
    order = torch.empty((batch, budget), dtype=torch.int64, device=similarity.device)
    tile = greedy_tile(num_tokens)
    launch(
        mmr_kernel,
        (batch,),
        {
            "relevance": relevance,
            "similarity": similarity,
            "order": order,
            "num_tokens": num_tokens,
            "budget": budget,
            "relevance_stride": relevance.stride(0),
            "image_stride": similarity.stride(0),
            "row_stride": similarity.stride(1),
            "relevance_weight": float(trade_off),
            "similarity_weight": float(1 - trade_off),
            "BLOCK_TOKENS": tile.block_tokens,
        },
        num_warps=tile.num_warps,
    )
    return order
