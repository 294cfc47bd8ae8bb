"""The GRU: both GEMMs, the gates and the new state in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.gpu.chips import chip_of
from ocvtp_kernels.gpu.launch import dot_precision, launch, unit_stride
from ocvtp_kernels.gpu.maths import tanh
from ocvtp_kernels.linear.tiles import ceil_div
from ocvtp_kernels.slots.tiles import gru_tile


@triton.jit
def gates(
    x_row,
    w,
    column,
    live_row,
    live_column,
    width,
    dim,
    reset,
    update,
    new,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds ``x W^T`` to the three gates' sums; W holds their rows one gate after the other."""
    x_row = x_row[:, None]
    w_row = w + column.to(tl.int64)[None, :] * width
    gate = dim.to(tl.int64) * width
    for start in range(0, width, DEPTH):
        inner = start + tl.arange(0, DEPTH)
        live_inner = inner < width
        a = tl.load(x_row + inner[None, :], mask=live_row[:, None] & live_inner[None, :], other=0.0)
        place = w_row + inner[:, None]
        live = live_inner[:, None] & live_column[None, :]
        w_reset = tl.load(place, mask=live, other=0.0)
        w_update = tl.load(place + gate, mask=live, other=0.0)
        w_new = tl.load(place + 2 * gate, mask=live, other=0.0)
        a = a.to(w_reset.dtype)
        reset = tl.dot(a, w_reset, reset, input_precision=PRECISION)
        update = tl.dot(a, w_update, update, input_precision=PRECISION)
        new = tl.dot(a, w_new, new, input_precision=PRECISION)
    return reset, update, new


@triton.jit
def gru_kernel(
    program,
    x,
    h,
    w_ih,
    w_hh,
    b_ih,
    b_hh,
    shift,
    mass,
    out,
    rows,
    rows_per_image,
    width,
    dim,
    h_image_stride,
    h_row_stride,
    mass_eps,
    SHIFT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``(1 - z) n + z h``; with SHIFT the input gates get ``mass / (mass + mass_eps) shift``.

    The ``program``-th block of it, or, as a kernel of its own, this program's.
    """
    if program is None:
        program = tl.program_id(0)
    blocks = tl.cdiv(dim, COLUMNS)
    row = (program // blocks) * ROWS + tl.arange(0, ROWS)
    column = (program % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    live_row = row < rows
    live_column = column < dim
    far_row = row.to(tl.int64)
    image = (row // rows_per_image).to(tl.int64)
    h_row = h + image * h_image_stride + (row % rows_per_image).to(tl.int64) * h_row_stride
    reset = tl.zeros([ROWS, COLUMNS], tl.float32)
    update = tl.zeros([ROWS, COLUMNS], tl.float32)
    new = tl.zeros([ROWS, COLUMNS], tl.float32)
    new_hidden = tl.zeros([ROWS, COLUMNS], tl.float32)
    reset, update, new = gates(
        x + far_row * width,
        w_ih,
        column,
        live_row,
        live_column,
        width,
        dim,
        reset,
        update,
        new,
        DEPTH,
        PRECISION,
    )
    reset, update, new_hidden = gates(
        h_row,
        w_hh,
        column,
        live_row,
        live_column,
        dim,
        dim,
        reset,
        update,
        new_hidden,
        DEPTH,
        PRECISION,
    )
    reset += gate_bias(b_ih, column, live_column) + gate_bias(b_hh, column, live_column)
    update += gate_bias(b_ih + dim, column, live_column) + gate_bias(
        b_hh + dim, column, live_column
    )
    new += gate_bias(b_ih + 2 * dim, column, live_column)
    new_hidden += gate_bias(b_hh + 2 * dim, column, live_column)
    if SHIFT:
        m = tl.load(mass + row, mask=live_row, other=0.0)
        part = (m / (m + mass_eps))[:, None]
        reset += part * gate_bias(shift, column, live_column)
        update += part * gate_bias(shift + dim, column, live_column)
        new += part * gate_bias(shift + 2 * dim, column, live_column)
    live = live_row[:, None] & live_column[None, :]
    state = tl.load(h_row[:, None] + column[None, :], mask=live, other=0.0).to(tl.float32)
    z = tl.sigmoid(update)
    n = tanh(new + tl.sigmoid(reset) * new_hidden)
    place = far_row[:, None] * dim + column[None, :]
    tl.store(out + place, ((1.0 - z) * n + z * state).to(out.dtype.element_ty), mask=live)


@triton.jit
def gate_bias(bias, column, live_column):
    """One gate's biases ``[1, COLUMNS]``."""
    return tl.load(bias + column, mask=live_column, other=0.0).to(tl.float32)[None, :]


def gru(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
    out: Tensor,
    shift: Tensor | None = None,
    mass: Tensor | None = None,
    mass_eps: float = 0.0,
) -> None:
    """One launch of the GRU on rows.

    Args:
        x: ``[B, R, E]``; out: ``[B, R, D]``; contiguous, as are the weights.
        h: ``[B, R, D]``, neighbours of the last dimension adjacent.
        shift: ``[3D]``, added to the input gates times ``mass / (mass + mass_eps)``.
        mass: float32 ``[B, R]``, with ``shift``.
    """
    batch, rows_per_image, width = x.shape
    rows, dim = batch * rows_per_image, h.shape[2]
    tile = gru_tile(chip_of(h.device), w_hh.dtype, rows, dim)
    launch(
        gru_kernel,
        (ceil_div(rows, tile.rows) * ceil_div(dim, tile.columns),),
        {
            "program": None,
            "x": x,
            "h": h,
            "w_ih": w_ih,
            "w_hh": w_hh,
            "b_ih": b_ih,
            "b_hh": b_hh,
            "shift": b_ih if shift is None else shift,
            "mass": h if mass is None else mass,
            "out": out,
            "rows": rows,
            "rows_per_image": rows_per_image,
            "width": width,
            "dim": dim,
            "h_image_stride": h.stride(0),
            "h_row_stride": h.stride(1),
            "mass_eps": mass_eps,
            "SHIFT": shift is not None,
            "ROWS": tile.rows,
            "COLUMNS": tile.columns,
            "DEPTH": tile.depth,
            "PRECISION": dot_precision(w_hh.dtype),
        },
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def gru_cell(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    """`ocvtp_kernels.slots.reference.gru_cell`, summed in float32."""
    out = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    w_ih, w_hh, b_ih, b_hh = (weight.contiguous() for weight in (w_ih, w_hh, b_ih, b_hh))
    gru(
        x.reshape(1, -1, x.shape[-1]).contiguous(),
        unit_stride(h.reshape(1, -1, h.shape[-1])),
        w_ih,
        w_hh,
        b_ih,
        b_hh,
        out.view(1, -1, h.shape[-1]),
    )
    return out
