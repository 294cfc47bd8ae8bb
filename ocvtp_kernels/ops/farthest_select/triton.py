"""Farthest-point greedy over a matrix of distances: one launch, and one for the first pick."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.triton_common.blocks import ceil_div
from ocvtp_kernels.triton_common.greedy import best_token, load_row, nan_last
from ocvtp_kernels.triton_common.greedy_tiles import NEAREST, greedy_tile
from ocvtp_kernels.triton_common.launch import launch, unit_stride
from ocvtp_kernels.triton_common.packed_argmax import unpack_token
from ocvtp_kernels.triton_common.programs import block_of_image


@triton.jit
def nearest_kernel(
    distances, nearest,
    num_tokens,
    image_stride, row_stride,
    SECOND: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """The second smallest of every column: float32 ``[B, N]``; without SECOND the smallest.

    One program takes a block of columns of an image and walks down all rows.
    """
    image, token, mask_token = block_of_image(num_tokens, BLOCK_COLUMNS)
    # Each lane keeps its two smallest; the lanes are combined at the end.
    smallest = tl.full([BLOCK_ROWS, BLOCK_COLUMNS], float("inf"), tl.float32)
    second = tl.full([BLOCK_ROWS, BLOCK_COLUMNS], float("inf"), tl.float32)
    here = distances + image * image_stride + token[None, :]
    for first_row in range(0, num_tokens, BLOCK_ROWS):
        row = first_row + tl.arange(0, BLOCK_ROWS)
        mask = (row < num_tokens)[:, None] & mask_token[None, :]
        offs_row = row.to(tl.int64)[:, None] * row_stride
        value = nan_last(tl.load(here + offs_row, mask=mask, other=float("inf")).to(tl.float32))
        second = tl.minimum(second, tl.maximum(smallest, value))
        smallest = tl.minimum(smallest, value)
    answer = tl.min(smallest, axis=0)
    if SECOND:
        lane = tl.arange(0, BLOCK_ROWS)[:, None]
        lane_of_smallest = tl.min(tl.where(smallest == answer[None, :], lane, BLOCK_ROWS), axis=0)
        others = tl.where(lane == lane_of_smallest[None, :], float("inf"), smallest)
        answer = tl.minimum(tl.min(others, axis=0), tl.min(second, axis=0))
    tl.store(nearest + image * num_tokens + token, answer, mask=mask_token)


@triton.jit(do_not_specialize=["budget"])
def farthest_kernel(
    distances, first, order,
    num_tokens, budget,
    image_stride, row_stride,
    NEAREST: tl.constexpr, DISTINCT: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
):  # fmt: skip
    """Order int64 ``[B, T]``, one program an image.

    ``first`` is the first token int64 ``[B]``; with NEAREST it is scores ``[B, N]``, and the token
    of the highest score comes first.
    """
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK_TOKENS)
    mask = token < num_tokens
    distances += image * image_stride
    order += image * budget
    free = mask
    if NEAREST:
        scores = tl.load(first + image * num_tokens + token, mask=mask, other=float("-inf"))
        pick = unpack_token(best_token(scores, token, free))
    else:
        pick = tl.load(first + image)
    tl.store(order, pick)
    running = tl.full([BLOCK_TOKENS], float("inf"), tl.float32)
    for step in range(1, budget):
        row = load_row(distances, pick, row_stride, token, mask, 0.0)
        running = tl.minimum(running, nan_last(row))
        if DISTINCT:
            free = free & (token != pick)
        pick = unpack_token(best_token(running, token, free))
        tl.store(order + step, pick)


def farthest_select(
    distances: Tensor, first: Tensor | None, budget: int, distinct: bool = True
) -> Tensor:
    """`ocvtp::farthest_select` in one launch, or two where ``first`` is None."""
    distances = unit_stride(distances)
    batch, num_tokens, _ = distances.shape
    order = torch.empty((batch, budget), dtype=torch.int64, device=distances.device)
    matrix = {
        "distances": distances,
        "num_tokens": num_tokens,
        "image_stride": distances.stride(0),
        "row_stride": distances.stride(1),
    }
    scores = first
    if scores is None:
        scores = distances.new_empty((batch, num_tokens), dtype=torch.float32)
        launch(
            nearest_kernel,
            (batch * ceil_div(num_tokens, NEAREST.block_columns),),
            {
                **matrix,
                "nearest": scores,
                # A single token has no second distance.
                "SECOND": num_tokens > 1,
                "BLOCK_ROWS": NEAREST.block_rows,
                "BLOCK_COLUMNS": NEAREST.block_columns,
            },
            num_warps=NEAREST.num_warps,
        )
    tile = greedy_tile(num_tokens)
    launch(
        farthest_kernel,
        (batch,),
        {
            **matrix,
            "first": scores.contiguous(),
            "order": order,
            "budget": budget,
            "NEAREST": first is None,
            "DISTINCT": distinct,
            "BLOCK_TOKENS": tile.block_tokens,
        },
        num_warps=tile.num_warps,
    )
    return order
