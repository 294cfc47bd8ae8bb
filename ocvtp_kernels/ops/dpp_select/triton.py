"""Greedy MAP inference of a determinantal point process, one program an image."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.ops.dpp_select import TINY
from ocvtp_kernels.ops.slot_argmax.triton import pick_score, pick_token
from ocvtp_kernels.triton_common.greedy import best_token, load_row, nan_last, times
from ocvtp_kernels.triton_common.greedy_tiles import greedy_tile
from ocvtp_kernels.triton_common.launch import launch, unit_stride


@triton.jit(do_not_specialize=["budget"])
def dpp_kernel(
    similarity,
    quality,
    components,
    order,
    num_tokens,
    budget,
    image_stride,
    row_stride,
    quality_stride,
    least_share,
    least_variance,
    TOKENS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Picks int64 ``[B, T]``; ``components`` float32 ``[B, T, N]`` holds what each explains.

    Products are rounded by themselves and subtracted in the order picked: the reference's very
    roundings, which decide where two tokens are almost equal.
    """
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, TOKENS)
    live = token < num_tokens
    similarity += image * image_stride
    quality += image * quality_stride
    components += image * budget * num_tokens
    order += image * budget
    weight = tl.load(quality + token, mask=live, other=0.0).to(tl.float32)
    diagonal = similarity + token.to(tl.int64) * (row_stride + 1)
    left = times(times(weight, weight), tl.load(diagonal, mask=live, other=0.0).to(tl.float32))
    most = tl.max(tl.where(live, nan_last(left), float("-inf")))
    least = tl.maximum(most, 0.0) * least_share
    free = live
    for step in range(budget):
        best = best_token(left, token, free)
        pick = pick_token(best)
        variance = pick_score(best)
        tl.store(order + step, pick)
        here = tl.load(quality + pick).to(tl.float32)
        row = load_row(similarity, pick, row_stride, token, live, 0.0)
        rest = times(times(here, row), weight)
        # Several components are on their way at once; those past the last are zero.
        for first in range(0, step, UNROLL):
            for ahead in tl.static_range(UNROLL):
                earlier = tl.cast(first + ahead, tl.int64)
                component = components + earlier * num_tokens
                known = earlier < step
                there = tl.load(component + pick, mask=known, other=0.0)
                there_are = tl.where(known, num_tokens, 0)
                explained = tl.load(component + token, mask=token < there_are, other=0.0)
                rest -= times(there, explained)
        deviation = tl.sqrt_rn(tl.maximum(variance, least_variance))
        explained = tl.where(variance > least, tl.div_rn(rest, deviation), 0.0)
        tl.store(components + tl.cast(step, tl.int64) * num_tokens + token, explained, mask=live)
        # Every thread reads what others stored.
        tl.debug_barrier()
        left -= times(explained, explained)
        free = free & (token != pick)


def dpp_select(similarity: Tensor, quality: Tensor, budget: int) -> Tensor:
    """`ocvtp_kernels.ops.greedy.dpp_select` in one launch."""
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
            "least_share": TINY,
            "least_variance": torch.finfo(torch.float32).tiny,
            "TOKENS": tile.tokens,
            "UNROLL": tile.unroll,
        },
        num_warps=tile.warps,
    )
    return order
