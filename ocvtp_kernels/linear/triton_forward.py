"""``residual + gelu(LN(x) W^T + b)`` in one pass over x, every part of it optional.

LayerNorm costs no pass of its own. Its mean needs none because folded weights have rows that sum
to zero (`ocvtp_kernels.fold`), and its deviation is summed while the GEMM walks the depth, then
scales the rows at the end. A pivot per row, the mean of its first block, is taken off x on the way,
so neither sum nor product cancels where a row lies far from zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.gpu.chips import chip_of
from ocvtp_kernels.gpu.launch import dot_precision, launch
from ocvtp_kernels.gpu.maths import gelu
from ocvtp_kernels.linear.tiles import LinearTile, ceil_div, linear_tile


@triton.jit
def linear_kernel(
    program,
    x,
    weight,
    bias,
    residual,
    out,
    tail,
    rows,
    rows_per_image,
    depth,
    columns,
    x_image_stride,
    x_row_stride,
    out_row_stride,
    eps,
    NORM: tl.constexpr,
    GELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    TAIL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of the output: the ``program``-th, or, as a kernel of its own, this program's."""
    if program is None:
        program = tl.program_id(0)
    # Blocks of the same rows run side by side.
    column_blocks = tl.cdiv(columns, COLUMNS)
    row_block = program // column_blocks
    column_block = program % column_blocks
    row = row_block * ROWS + tl.arange(0, ROWS)
    column = column_block * COLUMNS + tl.arange(0, COLUMNS)
    live_row = row < rows
    live_column = column < columns
    image = (row // rows_per_image).to(tl.int64)
    x_row = x + image * x_image_stride + (row % rows_per_image).to(tl.int64) * x_row_stride
    w_row = weight + column.to(tl.int64) * depth

    if NORM:
        inner = tl.arange(0, DEPTH)
        live = live_row[:, None] & (inner < depth)[None, :]
        first = tl.load(x_row[:, None] + inner[None, :], mask=live, other=0.0).to(tl.float32)
        pivot = tl.sum(first, axis=1) / tl.minimum(depth, DEPTH)
        total = tl.zeros([ROWS], tl.float32)
        squares = tl.zeros([ROWS], tl.float32)
    product = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, depth, DEPTH):
        inner = start + tl.arange(0, DEPTH)
        live_inner = inner < depth
        live = live_row[:, None] & live_inner[None, :]
        a = tl.load(x_row[:, None] + inner[None, :], mask=live, other=0.0)
        w = tl.load(
            w_row[None, :] + inner[:, None],
            mask=live_column[None, :] & live_inner[:, None],
            other=0.0,
        )
        if NORM:
            shifted = tl.where(live, a.to(tl.float32) - pivot[:, None], 0.0)
            total += tl.sum(shifted, axis=1)
            squares += tl.sum(shifted * shifted, axis=1)
            a = shifted
        product = tl.dot(a.to(w.dtype), w, product, input_precision=PRECISION)

    if NORM:
        mean = total / depth
        variance = tl.maximum(squares / depth - mean * mean, 0.0)
        product *= (1.0 / tl.sqrt_rn(variance + eps))[:, None]
    y = product + tl.load(bias + column, mask=live_column, other=0.0).to(tl.float32)[None, :]
    if GELU:
        y = gelu(y)
    stored = live_column
    if TAIL:
        # The last column goes elsewhere, in float32.
        if column_block == column_blocks - 1:
            last = tl.sum(tl.where(column[None, :] == columns - 1, y, 0.0), axis=1)
            tl.store(tail + row, last, mask=live_row)
        stored = column < columns - 1
    place = row.to(tl.int64)[:, None] * out_row_stride + column[None, :]
    live = live_row[:, None] & stored[None, :]
    if RESIDUAL:
        y += tl.load(residual + place, mask=live, other=0.0).to(tl.float32)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=live)


class Linear(NamedTuple):
    """One Linear to run.

    Attributes:
        x: ``[B, R, depth]``, neighbours of the last dimension adjacent.
        weight: ``[columns, depth]``; with ``norm`` its rows sum to zero.
        bias: ``[columns]``.
        out: ``[B, R, columns]``, contiguous but for its row stride; one column less with ``tail``.
        norm: take LN(x), without affine.
        gelu: apply GELU to the result.
        residual: added to the result; shape and strides of ``out``.
        tail: float32 ``[B, R]``, where the last column goes.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    out: Tensor
    norm: bool = False
    gelu: bool = False
    residual: Tensor | None = None
    tail: Tensor | None = None

    @property
    def tile(self) -> LinearTile:
        """The block of the output that a program takes."""
        batch, rows, _ = self.x.shape
        chip = chip_of(self.x.device)
        plain = not self.norm and self.residual is None
        return linear_tile(chip, self.weight.dtype, batch * rows, self.weight.shape[0], plain)

    @property
    def programs(self) -> int:
        """Blocks of the output."""
        batch, rows, _ = self.x.shape
        tile = self.tile
        return ceil_div(batch * rows, tile.rows) * ceil_div(self.weight.shape[0], tile.columns)

    def arguments(self) -> dict[str, Any]:
        """The kernel's arguments; what is absent is stood in for by ``out``."""
        batch, rows, depth = self.x.shape
        tile = self.tile
        return {
            "program": None,
            "x": self.x,
            "weight": self.weight,
            "bias": self.bias,
            "residual": self.out if self.residual is None else self.residual,
            "out": self.out,
            "tail": self.out if self.tail is None else self.tail,
            "rows": batch * rows,
            "rows_per_image": rows,
            "depth": depth,
            "columns": self.weight.shape[0],
            "x_image_stride": self.x.stride(0),
            "x_row_stride": self.x.stride(1),
            "out_row_stride": self.out.stride(1),
            "eps": LN_EPS,
            "NORM": self.norm,
            "GELU": self.gelu,
            "RESIDUAL": self.residual is not None,
            "TAIL": self.tail is not None,
            "ROWS": tile.rows,
            "COLUMNS": tile.columns,
            "DEPTH": tile.depth,
            "PRECISION": dot_precision(self.weight.dtype),
        }


LN_EPS = 1e-5


def linear(job: Linear) -> None:
    """Runs one Linear in one launch."""
    launch(
        linear_kernel,
        (job.programs,),
        job.arguments(),
        num_warps=job.tile.warps,
        num_stages=job.tile.stages,
    )
