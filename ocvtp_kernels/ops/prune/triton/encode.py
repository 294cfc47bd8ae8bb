"""The encode MLP: one launch per Linear; the first launch computes the slots' first query too.

That query does not depend on the tokens, so it runs on multiprocessors that the first Linear leaves
idle.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.ops.prune.triton.start import start
from ocvtp_kernels.ops.prune.triton.workspace import Workspace
from ocvtp_kernels.ops.prune.weights import Folded
from ocvtp_kernels.triton_common.dependent import wait_for_launches_before
from ocvtp_kernels.triton_common.launch import launch
from ocvtp_kernels.triton_common.layer_norm import LayerNorm, layer_norm
from ocvtp_kernels.triton_common.linear import Linear, linear, linear_block


@triton.jit
def first_kernel(
    x, weight, bias, out, mean, rstd, weight_mean,
    rows, rows_per_image, depth, columns,
    x_image_stride, x_row_stride, out_row_stride,
    slots, query_weight, query_bias, q,
    slot_rows, slots_per_image, dim, programs,
    NORM: tl.constexpr, GELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr, SLOT_BLOCK_M: tl.constexpr,
    SLOT_BLOCK_N: tl.constexpr, SLOT_BLOCK_K: tl.constexpr, SLOT_EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Programs below ``programs`` compute the first Linear, the others the first query."""
    wait_for_launches_before(PDL)
    program = tl.program_id(0)
    if program < programs:
        statistics = (mean, rstd, weight_mean) if NORM else None
        sizes = (rows, rows_per_image, depth, columns)
        strides = (x_image_stride, x_row_stride, out_row_stride)
        linear_block(
            program, (x, weight, bias), out, None, statistics, sizes, strides,
            GELU, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, PRECISION,
        )  # fmt: skip
    else:
        slot_program = program - programs
        query = (slots, query_weight, query_bias)
        query_sizes = (slot_rows, slots_per_image, dim, dim)
        query_strides = (tl.cast(slots_per_image, tl.int64) * dim, dim, dim)
        linear_block(
            slot_program, query, q, None, None, query_sizes, query_strides,
            False, SLOT_BLOCK_M, SLOT_BLOCK_N, SLOT_BLOCK_K, SLOT_EVEN_K, PRECISION,
        )  # fmt: skip


def first(encode: Linear, query: Linear) -> None:
    """The first Linear and the first query in one launch."""
    tile, query_tile = encode.tile, query.tile
    its, programs = query.arguments(query_tile), encode.programs(tile)
    launch(
        first_kernel,
        (programs + query.programs(query_tile),),
        {
            **{k: v for k, v in encode.arguments(tile).items() if k in first_kernel.arg_names},
            "slots": its["x"],
            "query_weight": its["weight"],
            "query_bias": its["bias"],
            "q": its["out"],
            "slot_rows": its["rows"],
            "slots_per_image": its["rows_per_image"],
            "dim": its["depth"],
            "programs": programs,
            "SLOT_BLOCK_M": its["BLOCK_M"],
            "SLOT_BLOCK_N": its["BLOCK_N"],
            "SLOT_BLOCK_K": its["BLOCK_K"],
            "SLOT_EVEN_K": its["EVEN_K"],
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def encode(
    tokens: Tensor, folded: Folded, slots: LayerNorm, query: Linear, space: Workspace
) -> Tensor:
    """The encoded tokens' LayerNorm without affine ``[B, N, D]``: key and value of all iterations.

    Args:
        tokens: ``[B, N, C]``, last dimension contiguous.
        slots: the LayerNorm of the initial slots.
        query: the first query, from that LayerNorm.
    """
    start(tokens, folded.encode_weights[0], slots, space)
    x = tokens
    if space.normed_tokens is not None:
        layer_norm(LayerNorm(x, space.normed_tokens))
        x = space.normed_tokens
    last = len(space.encoded) - 1
    for layer, out in enumerate(space.encoded):
        weight, bias = folded.encode_weights[layer], folded.encode_biases[layer]
        if layer == 0:
            first(Linear(x, weight, bias, out, space.statistics, gelu=layer < last), query)
        else:
            linear(Linear(x, weight, bias, out, gelu=layer < last))
        x = out
    if folded.post_norm is not None:
        layer_norm(LayerNorm(x, x, folded.post_norm))
    layer_norm(LayerNorm(x, x))
    return x
