"""LayerNorm of whole rows, once: what the Linears and the competition after it read.

A program holds its rows in registers, so the mean is exact before the deviation is summed. The tile
depends on the width alone: sums run in the same order whatever the batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.triton_common.blocks import ceil_div
from ocvtp_kernels.triton_common.dependent import wait_for_launches_before
from ocvtp_kernels.triton_common.launch import launch
from ocvtp_kernels.triton_common.linear_tiles import norm_tile

LN_EPS = 1e-5


@triton.jit
def centred_rows(x_row, live_row, width, eps, WIDTH: tl.constexpr):
    """Rows ``[R, WIDTH]``, the same less their mean, mean and reciprocal deviation ``[R]``."""
    column = tl.arange(0, WIDTH)
    live = live_row[:, None] & (column < width)[None, :]
    x = tl.load(x_row[:, None] + column[None, :], mask=live, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=1) / width
    centred = tl.where(live, x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / width
    return x, centred, mean, 1.0 / tl.sqrt_rn(variance + eps)


@triton.jit
def layer_norm_rows(
    program,
    x,
    gain,
    shift,
    tail_weight,
    tail_bias,
    out,
    copy,
    tail,
    rows,
    rows_per_image,
    width,
    x_image_stride,
    x_row_stride,
    eps,
    AFFINE: tl.constexpr,
    COPY: tl.constexpr,
    TAIL: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The ``program``-th block of `layer_norm_kernel`."""
    row = program * ROWS + tl.arange(0, ROWS)
    live_row = row < rows
    image = (row // rows_per_image).to(tl.int64)
    x_row = x + image * x_image_stride + (row % rows_per_image).to(tl.int64) * x_row_stride
    value, centred, _mean, scale = centred_rows(x_row, live_row, width, eps, WIDTH)
    y = centred * scale[:, None]
    column = tl.arange(0, WIDTH)
    live_column = column < width
    live = live_row[:, None] & live_column[None, :]
    place = row.to(tl.int64)[:, None] * width + column[None, :]
    if AFFINE:
        y *= tl.load(gain + column, mask=live_column, other=0.0).to(tl.float32)[None, :]
        y += tl.load(shift + column, mask=live_column, other=0.0).to(tl.float32)[None, :]
    if COPY:
        tl.store(copy + place, value.to(copy.dtype.element_ty), mask=live)
    if TAIL:
        w = tl.load(tail_weight + column, mask=live_column, other=0.0).to(tl.float32)
        dot = tl.sum(y * w[None, :], axis=1) + tl.load(tail_bias).to(tl.float32)
        tl.store(tail + row, dot, mask=live_row)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=live)


@triton.jit
def layer_norm_kernel(
    x,
    gain,
    shift,
    tail_weight,
    tail_bias,
    out,
    copy,
    tail,
    rows,
    rows_per_image,
    width,
    x_image_stride,
    x_row_stride,
    eps,
    AFFINE: tl.constexpr,
    COPY: tl.constexpr,
    TAIL: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    PDL: tl.constexpr,
):
    """LN(x), and beside it x in the dtype of ``copy``, and ``LN(x) . w + b`` a row."""
    wait_for_launches_before(PDL)
    layer_norm_rows(
        tl.program_id(0),
        x,
        gain,
        shift,
        tail_weight,
        tail_bias,
        out,
        copy,
        tail,
        rows,
        rows_per_image,
        width,
        x_image_stride,
        x_row_stride,
        eps,
        AFFINE,
        COPY,
        TAIL,
        ROWS,
        WIDTH,
    )


class LayerNorm(NamedTuple):
    """Rows to normalise.

    Attributes:
        x: ``[B, R, width]``, neighbours of the last dimension adjacent.
        out: ``[B, R, width]``, contiguous; x itself if that is.
        affine: gain and shift ``[width]``.
        copy: ``[B, R, width]``, contiguous: x in another dtype.
        tail: weight ``[width]``, bias ``[1]`` and float32 ``[B, R]``, where ``LN(x) . w + b`` goes.
    """

    x: Tensor
    out: Tensor
    affine: tuple[Tensor, Tensor] | None = None
    copy: Tensor | None = None
    tail: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def programs(self) -> int:
        """Blocks of rows."""
        return ceil_div(self.x.shape[0] * self.x.shape[1], norm_tile(self.x.shape[2]).rows)

    def arguments(self) -> dict[str, Any]:
        """The kernel's arguments; what is absent is stood in for by ``out``."""
        batch, rows, width = self.x.shape
        tile = norm_tile(width)
        gain, shift = self.affine or (self.out, self.out)
        tail_weight, tail_bias, tail = self.tail or (self.out, self.out, self.out)
        return {
            "x": self.x,
            "gain": gain,
            "shift": shift,
            "tail_weight": tail_weight,
            "tail_bias": tail_bias,
            "out": self.out,
            "copy": self.out if self.copy is None else self.copy,
            "tail": tail,
            "rows": batch * rows,
            "rows_per_image": rows,
            "width": width,
            "x_image_stride": self.x.stride(0),
            "x_row_stride": self.x.stride(1),
            "eps": LN_EPS,
            "AFFINE": self.affine is not None,
            "COPY": self.copy is not None,
            "TAIL": self.tail is not None,
            "ROWS": tile.rows,
            "WIDTH": tile.width,
        }


def layer_norm(job: LayerNorm) -> None:
    """Normalises rows in one launch."""
    tile = norm_tile(job.x.shape[2])
    launch(layer_norm_kernel, (job.programs,), job.arguments(), num_warps=tile.warps)
