"""The first launch: statistics for the tokens' LayerNorm, the slots' LayerNorm, cleared semaphores.

A LayerNorm after the first product needs mean and rstd of each token, and the mean of each row of
the first weight.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.ops.prune.triton.workspace import Workspace
from ocvtp_kernels.triton_common.blocks import ceil_div
from ocvtp_kernels.triton_common.dependent import wait_for_launches_before
from ocvtp_kernels.triton_common.launch import launch
from ocvtp_kernels.triton_common.layer_norm import LayerNorm, centred_rows, layer_norm_rows
from ocvtp_kernels.triton_common.linear_tiles import norm_tile


@triton.jit
def start_kernel(
    tokens, token_mean, token_rstd,
    token_rows, tokens_per_image,
    tokens_image_stride, tokens_row_stride,
    first_weight, weight_mean,
    weight_rows, token_width, token_programs, weight_programs,
    x, extra_weight, extra_bias, out, extra_column,
    rows, rows_per_image, width,
    x_image_stride, x_row_stride,
    semaphore,
    num_semaphores, eps,
    TOKEN_BLOCK_M: tl.constexpr, TOKEN_BLOCK_WIDTH: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr, BLOCK_SEMAPHORE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Programs take tokens, then rows of the weight, then slots; the first of the last clears."""
    wait_for_launches_before(PDL)
    program = tl.program_id(0)
    first_slot_program = token_programs + weight_programs
    if program < token_programs:
        row = program * TOKEN_BLOCK_M + tl.arange(0, TOKEN_BLOCK_M)
        mask = row < token_rows
        offs = (row // tokens_per_image).to(tl.int64) * tokens_image_stride
        offs += (row % tokens_per_image).to(tl.int64) * tokens_row_stride
        _x, _centred, mean, rstd = centred_rows(
            tokens + offs, mask, token_width, eps, TOKEN_BLOCK_WIDTH
        )
        tl.store(token_mean + row, mean, mask=mask)
        tl.store(token_rstd + row, rstd, mask=mask)
    elif program < first_slot_program:
        row = (program - token_programs) * TOKEN_BLOCK_M + tl.arange(0, TOKEN_BLOCK_M)
        mask = row < weight_rows
        offs = row.to(tl.int64) * token_width
        _x, _centred, mean, _rstd = centred_rows(
            first_weight + offs, mask, token_width, eps, TOKEN_BLOCK_WIDTH
        )
        tl.store(weight_mean + row, mean, mask=mask)
    else:
        if program == first_slot_program:
            for first in range(0, num_semaphores, BLOCK_SEMAPHORE):
                offs = first + tl.arange(0, BLOCK_SEMAPHORE)
                cleared = tl.zeros([BLOCK_SEMAPHORE], tl.int32)
                tl.store(semaphore + offs, cleared, mask=offs < num_semaphores)
        extra = (extra_weight, extra_bias, extra_column)
        sizes, strides = (rows, rows_per_image, width), (x_image_stride, x_row_stride)
        first_program = program - first_slot_program
        layer_norm_rows(
            first_program, x, out, None, None, extra, sizes, strides, eps, BLOCK_M, BLOCK_WIDTH
        )


def start(tokens: Tensor, first_weight: Tensor, slots: LayerNorm, space: Workspace) -> None:
    """Writes ``space.statistics`` where there are any, and clears ``space.split.semaphore``.

    Args:
        tokens: ``[B, N, C]``, last dimension contiguous.
        first_weight: ``[F, C]``, contiguous.
        slots: the slots' LayerNorm, with an extra column.
    """
    batch, num_tokens, width = tokens.shape
    slot_tile, token_tile = norm_tile(slots.x.shape[2]), norm_tile(width)
    token_programs = weight_programs = 0
    if space.statistics is not None:
        token_programs = ceil_div(batch * num_tokens, token_tile.block_m)
        weight_programs = ceil_div(first_weight.shape[0], token_tile.block_m)
    mean, rstd, weight_mean = space.statistics or (slots.out, slots.out, slots.out)
    semaphore = space.split.semaphore
    launch(
        start_kernel,
        (token_programs + weight_programs + slots.programs,),
        {
            "tokens": tokens,
            "token_mean": mean,
            "token_rstd": rstd,
            "token_rows": batch * num_tokens,
            "tokens_per_image": num_tokens,
            "tokens_image_stride": tokens.stride(0),
            "tokens_row_stride": tokens.stride(1),
            "first_weight": first_weight,
            "weight_mean": weight_mean,
            "weight_rows": first_weight.shape[0],
            "token_width": width,
            "token_programs": token_programs,
            "weight_programs": weight_programs,
            **{k: v for k, v in slots.arguments().items() if k in start_kernel.arg_names},
            "semaphore": semaphore,
            "num_semaphores": semaphore.numel(),
            "TOKEN_BLOCK_M": token_tile.block_m,
            "TOKEN_BLOCK_WIDTH": token_tile.block_width,
            "BLOCK_SEMAPHORE": 256,
        },
        num_warps=max(slot_tile.num_warps, token_tile.num_warps),
    )
