"""The GRU: both GEMMs, the gates and the new state in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.ops.slot_attention.tiles import gru_tile
from ocvtp_kernels.triton_common.archs import arch_of
from ocvtp_kernels.triton_common.dependent import wait_for_launches_before
from ocvtp_kernels.triton_common.launch import dot_precision, launch, unit_stride
from ocvtp_kernels.triton_common.linear_tiles import ceil_div
from ocvtp_kernels.triton_common.maths import tanh

EARLY_COLUMNS = tl.constexpr(16)


@triton.jit
def gates(
    x_row,
    w,
    column,
    width,
    dim,
    reset,
    update,
    new,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds ``x W^T`` to the three gates' sums; W holds their rows one gate after the other.

    EVEN: DEPTH divides ``width``. Rows and columns of the padding are those of others.
    """
    x_row = x_row[:, None]
    w_row = w + column.to(tl.int64)[None, :] * width
    gate = dim.to(tl.int64) * width
    for start in range(0, width, DEPTH):
        inner = start + tl.arange(0, DEPTH)
        a_place = x_row + inner[None, :]
        w_place = w_row + inner[:, None]
        if EVEN:
            a = tl.load(a_place)
            w_reset = tl.load(w_place)
            w_update = tl.load(w_place + gate)
            w_new = tl.load(w_place + 2 * gate)
        else:
            live = (inner < width)[:, None]
            a = tl.load(a_place, mask=(inner < width)[None, :], other=0.0)
            w_reset = tl.load(w_place, mask=live, other=0.0)
            w_update = tl.load(w_place + gate, mask=live, other=0.0)
            w_new = tl.load(w_place + 2 * gate, mask=live, other=0.0)
        reset = tl.dot(a, w_reset, reset, input_precision=PRECISION)
        update = tl.dot(a, w_update, update, input_precision=PRECISION)
        new = tl.dot(a, w_new, new, input_precision=PRECISION)
    return reset, update, new


@triton.jit
def gru_kernel(
    x,
    h,
    state,
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
    state_image_stride,
    state_row_stride,
    mass_eps,
    SHIFT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """``(1 - z) n + z h``; with SHIFT the input gates get ``mass / (mass + mass_eps) shift``."""
    wait_for_launches_before(PDL)
    program = tl.program_id(0)
    blocks = tl.cdiv(dim, COLUMNS)
    row = (program // blocks) * ROWS + tl.arange(0, ROWS)
    column = (program % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    live_row = row < rows
    live_column = column < dim
    # In the padding others are read, and their products are never stored.
    near_row = tl.minimum(row, rows - 1)
    near_column = tl.minimum(column, dim - 1)
    image = (near_row // rows_per_image).to(tl.int64)
    inner_row = (near_row % rows_per_image).to(tl.int64)
    h_row = h + image * h_image_stride + inner_row * h_row_stride
    state_row = state + image * state_image_stride + inner_row * state_row_stride
    live = live_row[:, None] & live_column[None, :]
    # What the gates need besides is fetched while their sums are made, as far as registers hold it.
    if COLUMNS <= EARLY_COLUMNS:
        biases, shifts = gate_vectors(b_ih, b_hh, shift, column, live_column, dim, SHIFT)
        before = tl.load(state_row[:, None] + column[None, :], mask=live, other=0.0)
    if SHIFT:
        m = tl.load(mass + row, mask=live_row, other=0.0)
        part = m / (m + mass_eps)
    reset = tl.zeros([ROWS, COLUMNS], tl.float32)
    update = tl.zeros([ROWS, COLUMNS], tl.float32)
    new = tl.zeros([ROWS, COLUMNS], tl.float32)
    new_hidden = tl.zeros([ROWS, COLUMNS], tl.float32)
    reset, update, new = gates(
        x + near_row.to(tl.int64) * width,
        w_ih,
        near_column,
        width,
        dim,
        reset,
        update,
        new,
        DEPTH,
        EVEN,
        PRECISION,
    )
    reset, update, new_hidden = gates(
        h_row,
        w_hh,
        near_column,
        dim,
        dim,
        reset,
        update,
        new_hidden,
        DEPTH,
        EVEN,
        PRECISION,
    )
    if COLUMNS > EARLY_COLUMNS:
        biases, shifts = gate_vectors(b_ih, b_hh, shift, column, live_column, dim, SHIFT)
    reset += biases[0]
    update += biases[1]
    new += biases[2]
    new_hidden += biases[3]
    if SHIFT:
        reset += part[:, None] * shifts[0]
        update += part[:, None] * shifts[1]
        new += part[:, None] * shifts[2]
    if COLUMNS > EARLY_COLUMNS:
        before = tl.load(state_row[:, None] + column[None, :], mask=live, other=0.0)
    z = tl.sigmoid(update)
    n = tanh(new + tl.sigmoid(reset) * new_hidden)
    place = row.to(tl.int64)[:, None] * dim + column[None, :]
    after = (1.0 - z) * n + z * before.to(tl.float32)
    tl.store(out + place, after.to(out.dtype.element_ty), mask=live)


@triton.jit
def gate_vectors(b_ih, b_hh, shift, column, live_column, dim, SHIFT: tl.constexpr):
    """Biases of reset, update, new input and new hidden ``[1, COLUMNS]``, and the shifts."""
    biases = (
        gate_vector(b_ih, column, live_column) + gate_vector(b_hh, column, live_column),
        gate_vector(b_ih + dim, column, live_column) + gate_vector(b_hh + dim, column, live_column),
        gate_vector(b_ih + 2 * dim, column, live_column),
        gate_vector(b_hh + 2 * dim, column, live_column),
    )
    shifts = (biases[0], biases[1], biases[2])
    if SHIFT:
        shifts = (
            gate_vector(shift, column, live_column),
            gate_vector(shift + dim, column, live_column),
            gate_vector(shift + 2 * dim, column, live_column),
        )
    return biases, shifts


@triton.jit
def gate_vector(vector, column, live_column):
    """One gate's numbers ``[1, COLUMNS]``."""
    return tl.load(vector + column, mask=live_column, other=0.0).to(tl.float32)[None, :]


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
    state: Tensor | None = None,
) -> None:
    """One launch of the GRU on rows.

    Args:
        x: ``[B, R, E]``; out: ``[B, R, D]``; contiguous, as are the weights.
        h: ``[B, R, D]``, what the GEMM reads; neighbours of the last dimension adjacent.
        shift: ``[3D]``, added to the input gates times ``mass / (mass + mass_eps)``.
        mass: float32 ``[B, R]``, with ``shift``.
        state: h, as z takes it, in another dtype; h itself if not given.
    """
    batch, rows_per_image, width = x.shape
    rows, dim = batch * rows_per_image, h.shape[2]
    state = h if state is None else state
    tile = gru_tile(arch_of(h.device), w_hh.dtype, rows, dim)
    launch(
        gru_kernel,
        (ceil_div(rows, tile.rows) * ceil_div(dim, tile.columns),),
        {
            "x": x,
            "h": h,
            "state": state,
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
            "state_image_stride": state.stride(0),
            "state_row_stride": state.stride(1),
            "mass_eps": mass_eps,
            "SHIFT": shift is not None,
            "ROWS": tile.rows,
            "COLUMNS": tile.columns,
            "DEPTH": tile.depth,
            "EVEN": width % tile.depth == 0 and dim % tile.depth == 0,
            "PRECISION": dot_precision(w_hh.dtype),
        },
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def gru_cell(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    """`ocvtp_kernels.ops.slot_attention.reference.gru_cell`, summed in float32."""
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
