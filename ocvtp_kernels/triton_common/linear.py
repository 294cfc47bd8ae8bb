"""``residual + gelu(LN(x) W^T + b)`` in one pass over x, every part of it optional.

x goes to the matrix instructions as it lies. With s the reciprocal deviation of a row, LayerNorm
comes after the product, ``LN(x) W^T = s (x W^T - mean(x) sum(W))``: statistics of x and means of
the rows of W are taken once, before (`ocvtp_kernels.ops.prune.triton.start`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.triton_common.archs import arch_of
from ocvtp_kernels.triton_common.dependent import wait_for_launches_before
from ocvtp_kernels.triton_common.launch import dot_precision, launch
from ocvtp_kernels.triton_common.linear_tiles import LinearTile, ceil_div, linear_tile
from ocvtp_kernels.triton_common.maths import gelu, gelu_half

EARLY_COLUMNS = tl.constexpr(128)


@triton.jit
def linear_block(
    program,
    x,
    weight,
    bias,
    residual,
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
    NORM: tl.constexpr,
    GELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The ``program``-th block of the output of `linear_kernel`."""
    # Blocks of the same rows run side by side.
    column_blocks = tl.cdiv(columns, COLUMNS)
    row = (program // column_blocks) * ROWS + tl.arange(0, ROWS)
    column_block = program % column_blocks
    column = column_block * COLUMNS + tl.arange(0, COLUMNS)
    live_row = row < rows
    # In the padding other rows are read, and their products are never stored.
    near_row = tl.minimum(row, rows - 1)
    image = (near_row // rows_per_image).to(tl.int64)
    x_row = x + image * x_image_stride + (near_row % rows_per_image).to(tl.int64) * x_row_stride
    w_row = weight + tl.minimum(column, columns - 1).to(tl.int64) * depth
    # What comes after the product is fetched while it is made, as far as registers hold it. A wide
    # block leaves none, and its epilogue goes half by half.
    PARTS: tl.constexpr = 1 if COLUMNS <= EARLY_COLUMNS else 2
    row_mean, row_scale = row_numbers(mean, scale, row, live_row, NORM)
    if PARTS == 1:
        shift, weight_sum = column_numbers(bias, weight_mean, column, depth, columns, NORM)
    product = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, depth, DEPTH):
        inner = start + tl.arange(0, DEPTH)
        a_place = x_row[:, None] + inner[None, :]
        w_place = w_row[None, :] + inner[:, None]
        if EVEN:
            a = tl.load(a_place)
            w = tl.load(w_place)
        else:
            a = tl.load(a_place, mask=(inner < depth)[None, :], other=0.0)
            w = tl.load(w_place, mask=(inner < depth)[:, None], other=0.0)
        product = tl.dot(a, w, product, input_precision=PRECISION)

    parts = (product, product)
    if PARTS == 2:
        halves = tl.reshape(product, (ROWS, 2, COLUMNS // 2))
        parts = tl.split(tl.permute(halves, (0, 2, 1)))
    for part in tl.static_range(PARTS):
        y = parts[part]
        if PARTS == 2:
            column = column_block * COLUMNS + part * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
            shift, weight_sum = column_numbers(bias, weight_mean, column, depth, columns, NORM)
        if NORM:
            y = (y - row_mean[:, None] * weight_sum[None, :]) * row_scale[:, None]
        y += shift[None, :]
        if GELU:
            y = gelu(y) if out.dtype.element_ty == tl.float32 else gelu_half(y)
        place = row.to(tl.int64)[:, None] * out_row_stride + column[None, :]
        live = live_row[:, None] & (column < columns)[None, :]
        if RESIDUAL:
            y += tl.load(residual + place, mask=live, other=0.0).to(tl.float32)
        tl.store(out + place, y.to(out.dtype.element_ty), mask=live)


@triton.jit
def row_numbers(mean, scale, row, live_row, NORM: tl.constexpr):
    """Mean and reciprocal deviation of rows, 0 and 1 without NORM."""
    row_mean = tl.zeros(row.shape, tl.float32)
    row_scale = tl.full(row.shape, 1.0, tl.float32)
    if NORM:
        row_mean = tl.load(mean + row, mask=live_row, other=0.0)
        row_scale = tl.load(scale + row, mask=live_row, other=0.0)
    return row_mean, row_scale


@triton.jit
def column_numbers(bias, weight_mean, column, depth, columns, NORM: tl.constexpr):
    """Bias, and the sum of the weight's row, of columns."""
    live = column < columns
    weight_sum = tl.zeros(column.shape, tl.float32)
    if NORM:
        weight_sum = tl.load(weight_mean + column, mask=live, other=0.0) * depth
    return tl.load(bias + column, mask=live, other=0.0).to(tl.float32), weight_sum


@triton.jit
def linear_kernel(
    x,
    weight,
    bias,
    residual,
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
    NORM: tl.constexpr,
    GELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """``residual + gelu(LN(x) W^T + b)``, a block of the output a program."""
    wait_for_launches_before(PDL)
    linear_block(
        tl.program_id(0),
        x,
        weight,
        bias,
        residual,
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
        RESIDUAL,
        ROWS,
        COLUMNS,
        DEPTH,
        EVEN,
        PRECISION,
    )


class Statistics(NamedTuple):
    """What a LayerNorm after the product needs: float32, taken of the tensors as they are.

    Attributes:
        mean, scale: ``[B, R]``, of the rows of x: mean and reciprocal deviation.
        weight_mean: ``[columns]``, the mean of each row of the weight.
    """

    mean: Tensor
    scale: Tensor
    weight_mean: Tensor


class Linear(NamedTuple):
    """One Linear to run.

    Attributes:
        x: ``[B, R, depth]`` in the dtype of ``weight``, neighbours of the last dimension adjacent.
        weight: ``[columns, depth]``.
        bias: ``[columns]``.
        out: ``[B, R, columns]``, contiguous but for its row stride.
        statistics: take LN(x), without affine.
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
        """The block of the output that a program takes."""
        batch, rows, _ = self.x.shape
        arch = arch_of(self.x.device)
        return linear_tile(arch, self.weight.dtype, batch * rows, self.weight.shape[0])

    def programs(self, tile: LinearTile) -> int:
        """Blocks of the output."""
        batch, rows, _ = self.x.shape
        return ceil_div(batch * rows, tile.rows) * ceil_div(self.weight.shape[0], tile.columns)

    def arguments(self, tile: LinearTile) -> dict[str, Any]:
        """The kernel's arguments; what is absent is stood in for by ``out``."""
        batch, rows, depth = self.x.shape
        mean, scale, weight_mean = self.statistics or (self.out, self.out, self.out)
        return {
            "x": self.x,
            "weight": self.weight,
            "bias": self.bias,
            "residual": self.out if self.residual is None else self.residual,
            "out": self.out,
            "mean": mean,
            "scale": scale,
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
            "ROWS": tile.rows,
            "COLUMNS": tile.columns,
            "DEPTH": tile.depth,
            "EVEN": depth % tile.depth == 0,
            "PRECISION": dot_precision(self.weight.dtype),
        }


def linear(job: Linear) -> None:
    """Runs one Linear in one launch."""
    tile = job.tile
    launch(
        linear_kernel,
        (job.programs(tile),),
        job.arguments(tile),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
