"""The GRU cell: both GEMMs, the gates and the new state in one kernel, and its gradients."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.ops.gru_cell.tiles import gru_tile
from ocvtp_kernels.triton_common.archs import arch_of
from ocvtp_kernels.triton_common.blocks import ceil_div
from ocvtp_kernels.triton_common.dependent import wait_for_launches_before
from ocvtp_kernels.triton_common.launch import dot_precision, launch, unit_stride
from ocvtp_kernels.triton_common.maths import tanh

MAX_EARLY_BLOCK_N = tl.constexpr(16)
BLOCK_SIZE = 1024  # elements of the state per program of the backward


@triton.jit
def gates(
    x_row, w, column, width, dim, sums,
    BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds ``x W^T`` to the three gates' sums; W ``[3 dim, width]`` has the gates one by one.

    EVEN_K: BLOCK_K divides ``width``. Rows and columns of the padding are clamped by the caller.
    """
    reset, update, new = sums
    x_row = x_row[:, None]
    w_row = w + column.to(tl.int64)[None, :] * width
    gate = tl.cast(dim, tl.int64) * width
    for start in range(0, width, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K)
        a_ptrs = x_row + offs_k[None, :]
        w_ptrs = w_row + offs_k[:, None]
        if EVEN_K:
            a = tl.load(a_ptrs)
            w_reset = tl.load(w_ptrs)
            w_update = tl.load(w_ptrs + gate)
            w_new = tl.load(w_ptrs + 2 * gate)
        else:
            mask = (offs_k < width)[:, None]
            a = tl.load(a_ptrs, mask=(offs_k < width)[None, :], other=0.0)
            w_reset = tl.load(w_ptrs, mask=mask, other=0.0)
            w_update = tl.load(w_ptrs + gate, mask=mask, other=0.0)
            w_new = tl.load(w_ptrs + 2 * gate, mask=mask, other=0.0)
        reset = tl.dot(a, w_reset, reset, input_precision=PRECISION)
        update = tl.dot(a, w_update, update, input_precision=PRECISION)
        new = tl.dot(a, w_new, new, input_precision=PRECISION)
    return reset, update, new


@triton.jit
def gru_kernel(
    x, h, state, w_ih, w_hh, b_ih, b_hh, shift, mass, out,
    rows, rows_per_image, width, dim,
    h_image_stride, h_row_stride, state_image_stride, state_row_stride,
    mass_eps,
    SHIFT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """``(1 - z) n + z h``; with SHIFT the input gates get ``mass / (mass + mass_eps) shift``."""
    wait_for_launches_before(PDL)
    program = tl.program_id(0)
    blocks = tl.cdiv(dim, BLOCK_N)
    row = (program // blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (program % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_row = row < rows
    mask_column = column < dim
    # Padding reads other rows and columns, and its products are not stored.
    clamped_row = tl.minimum(row, rows - 1)
    clamped_column = tl.minimum(column, dim - 1)
    image = (clamped_row // rows_per_image).to(tl.int64)
    inner_row = (clamped_row % rows_per_image).to(tl.int64)
    h_row = h + image * h_image_stride + inner_row * h_row_stride
    state_row = state + image * state_image_stride + inner_row * state_row_stride
    mask = mask_row[:, None] & mask_column[None, :]
    # A small tile has registers to load the epilogue's operands before the loops.
    if BLOCK_N <= MAX_EARLY_BLOCK_N:
        biases, shifts = gate_vectors(b_ih, b_hh, shift, column, mask_column, dim, SHIFT)
        before = tl.load(state_row[:, None] + column[None, :], mask=mask, other=0.0)
    if SHIFT:
        m = tl.load(mass + row, mask=mask_row, other=0.0)
        mass_ratio = m / (m + mass_eps)
    reset = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    update = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    new = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    new_hidden = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    x_row = x + clamped_row.to(tl.int64) * width
    sums = (reset, update, new)
    sums = gates(x_row, w_ih, clamped_column, width, dim, sums, BLOCK_K, EVEN_K, PRECISION)
    reset, update, new = sums
    sums = (reset, update, new_hidden)
    sums = gates(h_row, w_hh, clamped_column, dim, dim, sums, BLOCK_K, EVEN_K, PRECISION)
    reset, update, new_hidden = sums
    if BLOCK_N > MAX_EARLY_BLOCK_N:
        biases, shifts = gate_vectors(b_ih, b_hh, shift, column, mask_column, dim, SHIFT)
    reset += biases[0]
    update += biases[1]
    new += biases[2]
    new_hidden += biases[3]
    if SHIFT:
        reset += mass_ratio[:, None] * shifts[0]
        update += mass_ratio[:, None] * shifts[1]
        new += mass_ratio[:, None] * shifts[2]
    if BLOCK_N > MAX_EARLY_BLOCK_N:
        before = tl.load(state_row[:, None] + column[None, :], mask=mask, other=0.0)
    z = tl.sigmoid(update)
    n = tanh(new + tl.sigmoid(reset) * new_hidden)
    offs = row.to(tl.int64)[:, None] * dim + column[None, :]
    after = (1.0 - z) * n + z * before.to(tl.float32)
    tl.store(out + offs, after.to(out.dtype.element_ty), mask=mask)


@triton.jit
def gate_vectors(b_ih, b_hh, shift, column, mask_column, dim, SHIFT: tl.constexpr):
    """Biases of reset, update, new input and new hidden ``[1, BLOCK_N]``, and three shifts."""
    biases = (
        gate_vector(b_ih, column, mask_column) + gate_vector(b_hh, column, mask_column),
        gate_vector(b_ih + dim, column, mask_column) + gate_vector(b_hh + dim, column, mask_column),
        gate_vector(b_ih + 2 * dim, column, mask_column),
        gate_vector(b_hh + 2 * dim, column, mask_column),
    )
    shifts = (biases[0], biases[1], biases[2])
    if SHIFT:
        shifts = (
            gate_vector(shift, column, mask_column),
            gate_vector(shift + dim, column, mask_column),
            gate_vector(shift + 2 * dim, column, mask_column),
        )
    return biases, shifts


@triton.jit
def gate_vector(vector, column, mask_column):
    """One gate's mass_ratio of a vector, float32 ``[1, BLOCK_N]``."""
    return tl.load(vector + column, mask=mask_column, other=0.0).to(tl.float32)[None, :]


def gru(
    x: Tensor,
    h: Tensor,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    out: Tensor,
    shift: Tensor | None = None,
    mass: Tensor | None = None,
    mass_eps: float = 0.0,
    state: Tensor | None = None,
) -> None:
    """One launch of the GRU on rows.

    Args:
        x: ``[B, R, E]``; out: ``[B, R, D]``; contiguous, as are the weights.
        weights: w_ih ``[3D, E]``, w_hh ``[3D, D]``, b_ih and b_hh ``[3D]``.
        h: ``[B, R, D]``, what the GEMM reads; last dimension contiguous.
        shift: ``[3D]``, added to the input gates times ``mass / (mass + mass_eps)``.
        mass: float32 ``[B, R]``, with ``shift``.
        state: h in another dtype, which z multiplies; h itself if None.
    """
    w_ih, w_hh, b_ih, b_hh = weights
    batch, rows_per_image, width = x.shape
    rows, dim = batch * rows_per_image, h.shape[2]
    state = h if state is None else state
    tile = gru_tile(arch_of(h.device), w_hh.dtype, rows, dim)
    launch(
        gru_kernel,
        (ceil_div(rows, tile.block_m) * ceil_div(dim, tile.block_n),),
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
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "BLOCK_K": tile.block_k,
            "EVEN_K": width % tile.block_k == 0 and dim % tile.block_k == 0,
            "PRECISION": dot_precision(w_hh.dtype),
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def gru_cell(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> Tensor:
    """One launch; sums are float32."""
    out = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    weights = (w_ih.contiguous(), w_hh.contiguous(), b_ih.contiguous(), b_hh.contiguous())
    rows_x = x.reshape(1, -1, x.shape[-1]).contiguous()
    rows_h = unit_stride(h.reshape(1, -1, h.shape[-1]))
    gru(rows_x, rows_h, weights, out.view(1, -1, h.shape[-1]))
    return out


@triton.jit
def gates_backward_kernel(
    i, h_gates, h, grad, grad_h,
    numel, dim,
    BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """The gradients of both GEMMs' outputs, in place, and the direct part of that of h.

    Args:
        i, h_gates: ``[R, 3D]``, ``W_ih x + b_ih`` and ``W_hh h + b_hh``; overwritten.
        h, grad: ``[R, D]``; grad_h: ``[R, D]``, written; all contiguous.
        numel: R times D.
    """
    offs = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = offs < numel
    row, column = offs // dim, offs % dim
    offs_gate = row * 3 * dim + column
    state = tl.load(h + offs, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad + offs, mask=mask, other=0.0).to(tl.float32)
    i_reset = tl.load(i + offs_gate, mask=mask, other=0.0).to(tl.float32)
    i_update = tl.load(i + offs_gate + dim, mask=mask, other=0.0).to(tl.float32)
    i_new = tl.load(i + offs_gate + 2 * dim, mask=mask, other=0.0).to(tl.float32)
    h_reset = tl.load(h_gates + offs_gate, mask=mask, other=0.0).to(tl.float32)
    h_update = tl.load(h_gates + offs_gate + dim, mask=mask, other=0.0).to(tl.float32)
    h_new = tl.load(h_gates + offs_gate + 2 * dim, mask=mask, other=0.0).to(tl.float32)
    reset = tl.sigmoid(i_reset + h_reset)
    update = tl.sigmoid(i_update + h_update)
    new = tanh(i_new + reset * h_new)
    grad_new = g * (1.0 - update) * (1.0 - new * new)
    grad_update = g * (state - new) * update * (1.0 - update)
    grad_reset = grad_new * h_new * reset * (1.0 - reset)
    dtype = i.dtype.element_ty
    tl.store(i + offs_gate, grad_reset.to(dtype), mask=mask)
    tl.store(i + offs_gate + dim, grad_update.to(dtype), mask=mask)
    tl.store(i + offs_gate + 2 * dim, grad_new.to(dtype), mask=mask)
    tl.store(h_gates + offs_gate, grad_reset.to(dtype), mask=mask)
    tl.store(h_gates + offs_gate + dim, grad_update.to(dtype), mask=mask)
    tl.store(h_gates + offs_gate + 2 * dim, (grad_new * reset).to(dtype), mask=mask)
    tl.store(grad_h + offs, (g * update).to(dtype), mask=mask)


def gru_cell_backward(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gates are recomputed, so that the forward stores nothing for it."""
    rows_x, rows_h = x.reshape(-1, x.shape[-1]), h.reshape(-1, h.shape[-1])
    rows, dim = rows_h.shape
    i = torch.addmm(b_ih, rows_x, w_ih.T)
    h_gates = torch.addmm(b_hh, rows_h, w_hh.T)
    grad_h = torch.empty((rows, dim), dtype=h.dtype, device=h.device)
    launch(
        gates_backward_kernel,
        (ceil_div(rows * dim, BLOCK_SIZE),),
        {
            "i": i,
            "h_gates": h_gates,
            "h": rows_h.contiguous(),
            "grad": grad.reshape(rows, dim).contiguous(),
            "grad_h": grad_h,
            "numel": rows * dim,
            "dim": dim,
            "BLOCK_SIZE": BLOCK_SIZE,
        },
        num_warps=4,
    )
    return (
        torch.mm(i, w_ih).view(x.shape),
        torch.addmm(grad_h, h_gates, w_hh).view(h.shape),
        torch.mm(i.T, rows_x),
        torch.mm(h_gates.T, rows_h),
        i.sum(dim=0),
        h_gates.sum(dim=0),
    )
