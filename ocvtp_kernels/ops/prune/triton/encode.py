"""The encode MLP: one launch a Linear, and in the first one the slots' first query besides.

That query needs nothing of the tokens, so it fills what the first Linear leaves of the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.ops.prune.triton.start import start
from ocvtp_kernels.ops.prune.weights import Folded
from ocvtp_kernels.triton_common.dependent import wait_for_launches_before
from ocvtp_kernels.triton_common.launch import launch
from ocvtp_kernels.triton_common.layer_norm import LayerNorm, layer_norm
from ocvtp_kernels.triton_common.linear import Linear, Statistics, linear, linear_block


@triton.jit
def first_kernel(
    x,
    weight,
    bias,
    out,
    mean,
    scale,
    weight_mean,
    rows,
    rows_per_image,
    depth,
    columns,
    x_image_stride,
    x_row_stride,
    out_row_stride,
    slots,
    query_weight,
    query_bias,
    q,
    slot_rows,
    slots_per_image,
    dim,
    programs,
    NORM: tl.constexpr,
    GELU: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
    SLOT_ROWS: tl.constexpr,
    SLOT_COLUMNS: tl.constexpr,
    SLOT_DEPTH: tl.constexpr,
    SLOT_EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Programs below ``programs`` encode, the others make the first query."""
    wait_for_launches_before(PDL)
    program = tl.program_id(0)
    if program < programs:
        linear_block(
            program,
            x,
            weight,
            bias,
            out,
            out,
            mean,
            scale,
            weight_mean,
            rows,
            rows_per_image,
            depth,
            columns,
            x_image_stride,
            x_row_stride,
            out_row_stride,
            NORM,
            GELU,
            False,
            ROWS,
            COLUMNS,
            DEPTH,
            EVEN,
            PRECISION,
        )
    else:
        linear_block(
            program - programs,
            slots,
            query_weight,
            query_bias,
            q,
            q,
            q,
            q,
            q,
            slot_rows,
            slots_per_image,
            dim,
            dim,
            slots_per_image.to(tl.int64) * dim,
            dim,
            dim,
            False,
            False,
            False,
            SLOT_ROWS,
            SLOT_COLUMNS,
            SLOT_DEPTH,
            SLOT_EVEN,
            PRECISION,
        )


def first(job: Linear, query: Linear) -> None:
    """The first Linear and the first query in one launch."""
    tile, slot_tile = job.tile, query.tile
    its, programs = query.arguments(slot_tile), job.programs(tile)
    launch(
        first_kernel,
        (programs + query.programs(slot_tile),),
        {
            **{k: v for k, v in job.arguments(tile).items() if k not in ("residual", "RESIDUAL")},
            "slots": its["x"],
            "query_weight": its["weight"],
            "query_bias": its["bias"],
            "q": its["out"],
            "slot_rows": its["rows"],
            "slots_per_image": its["rows_per_image"],
            "dim": its["depth"],
            "programs": programs,
            "SLOT_ROWS": its["ROWS"],
            "SLOT_COLUMNS": its["COLUMNS"],
            "SLOT_DEPTH": its["DEPTH"],
            "SLOT_EVEN": its["EVEN"],
        },
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


class EncodeSpace(NamedTuple):
    """What encoding writes.

    Attributes:
        outputs: one ``[B, N, width]`` per Linear.
        statistics: for a LayerNorm of the tokens after the product.
        normed: ``[B, N, C]``, for one before it. At most one of the two is given.
        counters: int32, cleared.
    """

    outputs: Sequence[Tensor]
    statistics: Statistics | None
    normed: Tensor | None
    counters: Tensor


def norm_after(folded: Folded, dtype: torch.dtype) -> bool | None:
    """Whether the tokens' LayerNorm comes after the first product; None: there is none.

    In float32 the product would round away what a row far from zero has besides its mean; half
    precision is summed in float32, which has digits to spare.
    """
    return dtype != torch.float32 if folded.ln == "pre" else None


def encode(
    reference: Tensor, folded: Folded, slots: LayerNorm, query: Linear, space: EncodeSpace
) -> Tensor:
    """x^ ``[B, N, D]``: the encoded tokens' un-affined LayerNorm, key and value of all iterations.

    Args:
        reference: ``[B, N, C]``, neighbours of the last dimension adjacent.
        slots: the initial slots' LayerNorm, and query: the first query from it.
    """
    start(slots, space.counters, reference, folded.encode_weights[0], space.statistics)
    x = reference
    if space.normed is not None:
        layer_norm(LayerNorm(x, space.normed))
        x = space.normed
    for depth, out in enumerate(space.outputs):
        weight, bias = folded.encode_weights[depth], folded.encode_biases[depth]
        gelu = depth + 1 < len(space.outputs)
        if depth == 0:
            first(Linear(x, weight, bias, out, space.statistics, gelu), query)
        else:
            linear(Linear(x, weight, bias, out, gelu=gelu))
        x = out
    if folded.post_norm is not None:
        layer_norm(LayerNorm(x, x, folded.post_norm))
    layer_norm(LayerNorm(x, x))
    return x
