"""``residual + gelu(LN(x) W^T + b)`` in one pass over x; LN, GELU and residual are optional.

LayerNorm comes after the product, ``LN(x) W^T = rstd (x W^T - mean(x) sum(W))``, so that the matrix
instructions read x as it is. Mean and rstd of x's rows and means of W's rows are computed once, by
`ocvtp_kernels.ops.prune.triton.start`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.triton_common.archs import arch_of
from ocvtp_kernels.triton_common.blocks import ceil_div
from ocvtp_kernels.triton_common.dependent import wait_for_launches_before
from ocvtp_kernels.triton_common.launch import dot_precision, launch
from ocvtp_kernels.triton_common.linear_tiles import LinearTile, linear_tile
from ocvtp_kernels.triton_common.maths import gelu, gelu_half

MAX_EARLY_BLOCK_N = tl.constexpr(128)


@triton.jit
def linear_block(
    program, operands, out, residual, statistics, sizes, strides,
    GELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The ``program``-th block of the output of `linear_kernel`; what is None is left out.

    Args:
        operands: (x, weight, bias); statistics: (mean, rstd, weight_mean).
        sizes: (rows, rows_per_image, depth, columns); strides: (x's image, x's row, out's row).
    """
    x, weight, bias = operands
    rows, rows_per_image, depth, columns = sizes
    x_image_stride, x_row_stride, out_row_stride = strides
    # Programs next to each other share their rows of x in L2.
    column_blocks = tl.cdiv(columns, BLOCK_N)
    row = (program // column_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    column_block = program % column_blocks
    column = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_row = row < rows
    # Padding reads other rows, and its products are not stored.
    clamped_row = tl.minimum(row, rows - 1)
    image = (clamped_row // rows_per_image).to(tl.int64)
    x_row = x + image * x_image_stride + (clamped_row % rows_per_image).to(tl.int64) * x_row_stride
    w_row = weight + tl.minimum(column, columns - 1).to(tl.int64) * depth
    # The epilogue's operands are loaded before the loop, to hide their latency. A wide block has no
    # registers for that, and its epilogue handles one half of the columns after the other.
    EPILOGUE_PARTS: tl.constexpr = 1 if BLOCK_N <= MAX_EARLY_BLOCK_N else 2
    mean_m, rstd_m = load_row_statistics(statistics, row, mask_row)
    if EPILOGUE_PARTS == 1:
        bias_n, weight_sum_n = load_bias(bias, statistics, column, depth, columns)
    product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, depth, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K)
        a_ptrs = x_row[:, None] + offs_k[None, :]
        w_ptrs = w_row[None, :] + offs_k[:, None]
        if EVEN_K:
            a = tl.load(a_ptrs)
            w = tl.load(w_ptrs)
        else:
            a = tl.load(a_ptrs, mask=(offs_k < depth)[None, :], other=0.0)
            w = tl.load(w_ptrs, mask=(offs_k < depth)[:, None], other=0.0)
        product = tl.dot(a, w, product, input_precision=PRECISION)

    parts = (product, product)
    if EPILOGUE_PARTS == 2:
        halves = tl.reshape(product, (BLOCK_M, 2, BLOCK_N // 2))
        parts = tl.split(tl.permute(halves, (0, 2, 1)))
    for part in tl.static_range(EPILOGUE_PARTS):
        y = parts[part]
        if EPILOGUE_PARTS == 2:
            column = column_block * BLOCK_N + part * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
            bias_n, weight_sum_n = load_bias(bias, statistics, column, depth, columns)
        if statistics is not None:
            y = (y - mean_m[:, None] * weight_sum_n[None, :]) * rstd_m[:, None]
        y += bias_n[None, :]
        if GELU:
            y = gelu(y) if out.dtype.element_ty == tl.float32 else gelu_half(y)
        offs = row.to(tl.int64)[:, None] * out_row_stride + column[None, :]
        mask = mask_row[:, None] & (column < columns)[None, :]
        if residual is not None:
            y += tl.load(residual + offs, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + offs, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def load_row_statistics(statistics, row, mask_row):
    """Mean and reciprocal standard deviation ``[BLOCK_M]``; 0 and 1 without statistics."""
    mean_m = tl.zeros(row.shape, tl.float32)
    rstd_m = tl.full(row.shape, 1.0, tl.float32)
    if statistics is not None:
        mean_m = tl.load(statistics[0] + row, mask=mask_row, other=0.0)
        rstd_m = tl.load(statistics[1] + row, mask=mask_row, other=0.0)
    return mean_m, rstd_m


@triton.jit
def load_bias(bias, statistics, column, depth, columns):
    """Bias, and the sum of the weight's row, ``[BLOCK_N]``."""
    mask = column < columns
    weight_sum_n = tl.zeros(column.shape, tl.float32)
    if statistics is not None:
        weight_sum_n = tl.load(statistics[2] + column, mask=mask, other=0.0) * depth
    return tl.load(bias + column, mask=mask, other=0.0).to(tl.float32), weight_sum_n


@triton.jit
def linear_kernel(
    x, weight, bias, residual, out, mean, rstd, weight_mean,
    rows, rows_per_image, depth, columns,
    x_image_stride, x_row_stride, out_row_stride,
    NORM: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """``residual + gelu(LN(x) W^T + b)``, one block of the output per program."""
    wait_for_launches_before(PDL)
    statistics = (mean, rstd, weight_mean) if NORM else None
    added = residual if RESIDUAL else None
    sizes = (rows, rows_per_image, depth, columns)
    strides = (x_image_stride, x_row_stride, out_row_stride)
    linear_block(
        tl.program_id(0), (x, weight, bias), out, added, statistics, sizes, strides,
        GELU, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, PRECISION,
    )  # fmt: skip


class Statistics(NamedTuple):
    """What a LayerNorm after the product needs, in float32.

    Attributes:
        mean, rstd: ``[B, R]``, mean and reciprocal standard deviation of the rows of x.
        weight_mean: ``[columns]``, the mean of each row of the weight.
    """

    mean: Tensor
    rstd: Tensor
    weight_mean: Tensor


class Linear(NamedTuple):
    """One Linear to run.

    Attributes:
        x: ``[B, R, depth]`` in the dtype of ``weight``, last dimension contiguous.
        weight: ``[columns, depth]``.
        bias: ``[columns]``.
        out: ``[B, R, columns]``, contiguous but for its row stride.
        statistics: of x and weight, for LN(x) without affine in place of x.
        gelu: apply GELU to the result.
        residual: added to the result; shape and strides of ``out``.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    out: Tensor
    statistics: Statistics | None = None
    gelu: bool = False
    residual: Tensor | None = None

    @property
    def tile(self) -> LinearTile:
        """The block of the output that a program computes."""
        batch, rows, _ = self.x.shape
        arch = arch_of(self.x.device)
        return linear_tile(arch, self.weight.dtype, batch * rows, self.weight.shape[0])

    def programs(self, tile: LinearTile) -> int:
        """Blocks of the output."""
        batch, rows, _ = self.x.shape
        return ceil_div(batch * rows, tile.block_m) * ceil_div(self.weight.shape[0], tile.block_n)

    def arguments(self, tile: LinearTile) -> dict[str, Any]:
        """The kernel's arguments; ``out`` stands for tensors that are None."""
        batch, rows, depth = self.x.shape
        mean, rstd, weight_mean = self.statistics or (self.out, self.out, self.out)
        return {
            "x": self.x,
            "weight": self.weight,
            "bias": self.bias,
            "residual": self.out if self.residual is None else self.residual,
            "out": self.out,
            "mean": mean,
            "rstd": rstd,
            "weight_mean": weight_mean,
            "rows": batch * rows,
            "rows_per_image": rows,
            "depth": depth,
            "columns": self.weight.shape[0],
            "x_image_stride": self.x.stride(0),
            "x_row_stride": self.x.stride(1),
            "out_row_stride": self.out.stride(1),
            "NORM": self.statistics is not None,
            "GELU": self.gelu,
            "RESIDUAL": self.residual is not None,
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "BLOCK_K": tile.block_k,
            "EVEN_K": depth % tile.block_k == 0,
            "PRECISION": dot_precision(self.weight.dtype),
        }


def linear(job: Linear) -> None:
    """Runs one Linear in one launch."""
    tile = job.tile
    launch(
        linear_kernel,
        (job.programs(tile),),
        job.arguments(tile),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
