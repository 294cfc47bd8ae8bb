"""LayerNorm of whole rows: what the Linears and Slot Attention after it read.

A program holds its rows in registers, so the mean is known before the squared deviations are
summed. The tile depends on the width alone, which makes it batch-invariant.
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
def centred_rows(x_row, mask_row, width, eps, BLOCK_WIDTH: tl.constexpr):
    """Rows x and x - mean ``[BLOCK_M, BLOCK_WIDTH]``, their mean and rstd ``[BLOCK_M]``."""
    column = tl.arange(0, BLOCK_WIDTH)
    mask = mask_row[:, None] & (column < width)[None, :]
    x = tl.load(x_row[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=1) / width
    centred = tl.where(mask, x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / width
    return x, centred, mean, 1.0 / tl.sqrt_rn(variance + eps)


@triton.jit
def layer_norm_rows(
    program, x, out, affine, copy, extra, sizes, strides, eps,
    BLOCK_M: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """The ``program``-th block of rows of `layer_norm_kernel`; what is None is left out.

    Args:
        affine: (gain, shift); extra: (extra_weight, extra_bias, extra_column).
        sizes: (rows, rows_per_image, width); strides: of x, (image, row).
    """
    rows, rows_per_image, width = sizes
    x_image_stride, x_row_stride = strides
    row = program * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_row = row < rows
    image = (row // rows_per_image).to(tl.int64)
    x_row = x + image * x_image_stride + (row % rows_per_image).to(tl.int64) * x_row_stride
    value, centred, _mean, rstd = centred_rows(x_row, mask_row, width, eps, BLOCK_WIDTH)
    y = centred * rstd[:, None]
    column = tl.arange(0, BLOCK_WIDTH)
    mask_column = column < width
    mask = mask_row[:, None] & mask_column[None, :]
    offs = row.to(tl.int64)[:, None] * width + column[None, :]
    if affine is not None:
        gain, shift = affine
        y *= tl.load(gain + column, mask=mask_column, other=0.0).to(tl.float32)[None, :]
        y += tl.load(shift + column, mask=mask_column, other=0.0).to(tl.float32)[None, :]
    if copy is not None:
        tl.store(copy + offs, value.to(copy.dtype.element_ty), mask=mask)
    if extra is not None:
        extra_weight, extra_bias, extra_column = extra
        w = tl.load(extra_weight + column, mask=mask_column, other=0.0).to(tl.float32)
        dot = tl.sum(y * w[None, :], axis=1) + tl.load(extra_bias).to(tl.float32)
        tl.store(extra_column + row, dot, mask=mask_row)
    tl.store(out + offs, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def layer_norm_kernel(
    x, gain, shift, extra_weight, extra_bias, out, copy, extra_column,
    rows, rows_per_image, width,
    x_image_stride, x_row_stride,
    eps,
    AFFINE: tl.constexpr, COPY: tl.constexpr, EXTRA_COLUMN: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """LN(x), and beside it x in the dtype of ``copy``, and ``LN(x) . w + b`` of each row."""
    wait_for_launches_before(PDL)
    affine = (gain, shift) if AFFINE else None
    copied = copy if COPY else None
    extra = (extra_weight, extra_bias, extra_column) if EXTRA_COLUMN else None
    sizes, strides = (rows, rows_per_image, width), (x_image_stride, x_row_stride)
    layer_norm_rows(
        tl.program_id(0), x, out, affine, copied, extra, sizes, strides, eps, BLOCK_M, BLOCK_WIDTH
    )


class LayerNorm(NamedTuple):
    """Rows to normalise.

    Attributes:
        x: ``[B, R, width]``, last dimension contiguous.
        out: ``[B, R, width]``, contiguous; may be x.
        affine: gain and shift ``[width]``.
        copy: ``[B, R, width]``, contiguous: x in another dtype.
        extra_column: weight ``[width]``, bias ``[1]``, and ``LN(x) . w + b`` float32 ``[B, R]``,
            written.
    """

    x: Tensor
    out: Tensor
    affine: tuple[Tensor, Tensor] | None = None
    copy: Tensor | None = None
    extra_column: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def programs(self) -> int:
        """Blocks of rows."""
        return ceil_div(self.x.shape[0] * self.x.shape[1], norm_tile(self.x.shape[2]).block_m)

    def arguments(self) -> dict[str, Any]:
        """The kernel's arguments; ``out`` stands for tensors that are None."""
        batch, rows, width = self.x.shape
        tile = norm_tile(width)
        gain, shift = self.affine or (self.out, self.out)
        extra_weight, extra_bias, extra_column = self.extra_column or (self.out, self.out, self.out)
        return {
            "x": self.x,
            "gain": gain,
            "shift": shift,
            "extra_weight": extra_weight,
            "extra_bias": extra_bias,
            "out": self.out,
            "copy": self.out if self.copy is None else self.copy,
            "extra_column": extra_column,
            "rows": batch * rows,
            "rows_per_image": rows,
            "width": width,
            "x_image_stride": self.x.stride(0),
            "x_row_stride": self.x.stride(1),
            "eps": LN_EPS,
            "AFFINE": self.affine is not None,
            "COPY": self.copy is not None,
            "EXTRA_COLUMN": self.extra_column is not None,
            "BLOCK_M": tile.block_m,
            "BLOCK_WIDTH": tile.block_width,
        }


def layer_norm(job: LayerNorm) -> None:
    """Normalises rows in one launch."""
    tile = norm_tile(job.x.shape[2])
    launch(layer_norm_kernel, (job.programs,), job.arguments(), num_warps=tile.num_warps)
