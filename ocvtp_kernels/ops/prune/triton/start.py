"""What must be known before the first Linear, of the tokens and of the slots, in one launch.

Of each token the mean and the deviation, of each row of the first weight the mean, which a
LayerNorm after the product needs; and the slots' own LayerNorm.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.triton_common.blocks import ceil_div
from ocvtp_kernels.triton_common.dependent import wait_for_launches_before
from ocvtp_kernels.triton_common.launch import launch
from ocvtp_kernels.triton_common.layer_norm import LayerNorm, centred_rows, layer_norm_rows
from ocvtp_kernels.triton_common.linear import Statistics
from ocvtp_kernels.triton_common.linear_tiles import norm_tile


@triton.jit
def start_kernel(
    tokens,
    token_mean,
    token_scale,
    token_rows,
    tokens_per_image,
    tokens_image_stride,
    tokens_row_stride,
    first_weight,
    weight_mean,
    weight_rows,
    token_width,
    token_programs,
    weight_programs,
    x,
    tail_weight,
    tail_bias,
    out,
    tail,
    rows,
    rows_per_image,
    width,
    x_image_stride,
    x_row_stride,
    counters,
    num_counters,
    eps,
    TOKEN_ROWS: tl.constexpr,
    TOKEN_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    COUNTERS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Programs take tokens, then rows of the weight, then slots; the first of these clears."""
    wait_for_launches_before(PDL)
    program = tl.program_id(0)
    first_slots = token_programs + weight_programs
    if program < token_programs:
        row = program * TOKEN_ROWS + tl.arange(0, TOKEN_ROWS)
        live = row < token_rows
        far = (row // tokens_per_image).to(tl.int64) * tokens_image_stride
        far += (row % tokens_per_image).to(tl.int64) * tokens_row_stride
        _x, _centred, mean, scale = centred_rows(tokens + far, live, token_width, eps, TOKEN_WIDTH)
        tl.store(token_mean + row, mean, mask=live)
        tl.store(token_scale + row, scale, mask=live)
    elif program < first_slots:
        row = (program - token_programs) * TOKEN_ROWS + tl.arange(0, TOKEN_ROWS)
        live = row < weight_rows
        place = first_weight + row.to(tl.int64) * token_width
        _x, _centred, mean, _scale = centred_rows(place, live, token_width, eps, TOKEN_WIDTH)
        tl.store(weight_mean + row, mean, mask=live)
    else:
        if program == first_slots:
            for first in range(0, num_counters, COUNTERS):
                here = first + tl.arange(0, COUNTERS)
                tl.store(counters + here, tl.zeros([COUNTERS], tl.int32), mask=here < num_counters)
        layer_norm_rows(
            program - first_slots,
            x,
            x,
            x,
            tail_weight,
            tail_bias,
            out,
            out,
            tail,
            rows,
            rows_per_image,
            width,
            x_image_stride,
            x_row_stride,
            eps,
            False,
            False,
            True,
            ROWS,
            WIDTH,
        )


def start(
    slots: LayerNorm,
    counters: Tensor,
    tokens: Tensor,
    first_weight: Tensor,
    statistics: Statistics | None,
) -> None:
    """One launch before the first Linear.

    Args:
        slots: the slots' LayerNorm, with a tail.
        counters: int32, cleared.
        tokens: ``[B, N, C]``, neighbours of the last dimension adjacent.
        first_weight: ``[F, C]``, contiguous.
        statistics: those of ``tokens`` and ``first_weight``, written if given.
    """
    batch, num_tokens, width = tokens.shape
    tile, wide = norm_tile(slots.x.shape[2]), norm_tile(width)
    token_programs = ceil_div(batch * num_tokens, wide.rows) if statistics else 0
    weight_programs = ceil_div(first_weight.shape[0], wide.rows) if statistics else 0
    mean, scale, weight_mean = statistics or (slots.out, slots.out, slots.out)
    its = slots.arguments()
    launch(
        start_kernel,
        (token_programs + weight_programs + slots.programs,),
        {
            "tokens": tokens,
            "token_mean": mean,
            "token_scale": scale,
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
            **{name: its[name] for name in OF_SLOTS},
            "counters": counters,
            "num_counters": counters.numel(),
            "TOKEN_ROWS": wide.rows,
            "TOKEN_WIDTH": wide.width,
            "COUNTERS": 256,
        },
        num_warps=max(tile.warps, wide.warps),
    )


OF_SLOTS = (
    *("x", "tail_weight", "tail_bias", "out", "tail", "rows", "rows_per_image", "width"),
    *("x_image_stride", "x_row_stride", "eps", "ROWS", "WIDTH"),
)
