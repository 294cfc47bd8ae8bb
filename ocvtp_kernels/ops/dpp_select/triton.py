"""Greedy MAP inference of a determinantal point process, one program an image."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.ops.dpp_select import TINY
from ocvtp_kernels.triton_common.greedy import best_token, load_row, nan_last, times
from ocvtp_kernels.triton_common.greedy_tiles import greedy_tile
from ocvtp_kernels.triton_common.launch import launch, unit_stride
from ocvtp_kernels.triton_common.packed_argmax import unpack_score, unpack_token


@triton.jit(do_not_specialize=["budget"])
def dpp_kernel(
    similarity, quality, components, order,
    num_tokens, budget,
    image_stride, row_stride, quality_stride,
    min_share, tiny_variance,
    BLOCK_TOKENS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Order int64 ``[B, T]``; ``components`` float32 ``[B, T, N]`` are the Cholesky rows.

    Products are rounded before they are subtracted, in the order of the ids: as in the reference,
    because rounding decides between two tokens that are almost equal.
    """
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK_TOKENS)
    mask = token < num_tokens
    similarity += image * image_stride
    quality += image * quality_stride
    components += image * budget * num_tokens
    order += image * budget
    weight = tl.load(quality + token, mask=mask, other=0.0).to(tl.float32)
    diagonal = similarity + token.to(tl.int64) * (row_stride + 1)
    remaining = times(times(weight, weight), tl.load(diagonal, mask=mask, other=0.0).to(tl.float32))
    max_remaining = tl.max(tl.where(mask, nan_last(remaining), float("-inf")))
    min_variance = tl.maximum(max_remaining, 0.0) * min_share
    free = mask
    for step in range(budget):
        best = best_token(remaining, token, free)
        pick = unpack_token(best)
        variance = unpack_score(best)
        tl.store(order + step, pick)
        quality_at_pick = tl.load(quality + pick).to(tl.float32)
        row = load_row(similarity, pick, row_stride, token, mask, 0.0)
        residual = times(times(quality_at_pick, row), weight)
        # Several components are in flight at once; those past the last are zero.
        for first in range(0, step, UNROLL):
            for ahead in tl.static_range(UNROLL):
                earlier = tl.cast(first + ahead, tl.int64)
                component = components + earlier * num_tokens
                is_earlier = earlier < step
                at_pick = tl.load(component + pick, mask=is_earlier, other=0.0)
                end = tl.where(is_earlier, num_tokens, 0)
                explained = tl.load(component + token, mask=token < end, other=0.0)
                residual -= times(at_pick, explained)
        deviation = tl.sqrt_rn(tl.maximum(variance, tiny_variance))
        explained = tl.where(variance > min_variance, tl.div_rn(residual, deviation), 0.0)
        tl.store(components + tl.cast(step, tl.int64) * num_tokens + token, explained, mask=mask)
        # Every thread reads what others stored.
        tl.debug_barrier()
        remaining -= times(explained, explained)
        free = free & (token != pick)


def dpp_select(similarity: Tensor, quality: Tensor, budget: int) -> Tensor:
    """`ocvtp::dpp_select` in one launch."""
    similarity, quality = unit_stride(similarity), unit_stride(quality)
    batch, num_tokens, _ = similarity.shape
    order = torch.empty((batch, budget), dtype=torch.int64, device=similarity.device)
    tile = greedy_tile(num_tokens)
    launch(
        dpp_kernel,
        (batch,),
        {
            "similarity": similarity,
            "quality": quality,
            "components": similarity.new_empty((batch, budget, num_tokens), dtype=torch.float32),
            "order": order,
            "num_tokens": num_tokens,
            "budget": budget,
            "image_stride": similarity.stride(0),
            "row_stride": similarity.stride(1),
            "quality_stride": quality.stride(0),
            "min_share": TINY,
            "tiny_variance": torch.finfo(torch.float32).tiny,
            "BLOCK_TOKENS": tile.block_tokens,
            "UNROLL": tile.unroll,
        },
        num_warps=tile.num_warps,
    )
    return order
