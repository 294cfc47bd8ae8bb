"""All iterations in one cooperative launch: the chain's kernels as phases, a grid barrier between.

At batch 1 an iteration is five launches of a few microseconds each; a barrier costs less than a
launch. Every phase is the kernel that the chain launches by itself, so the results are the same
bits. A phase can also be launched alone, which needs no barrier and runs in Triton's interpreter.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.fold import FoldedSlots
from ocvtp_kernels.gpu.chips import chip_of
from ocvtp_kernels.gpu.launch import dot_precision, launch
from ocvtp_kernels.linear.tiles import ceil_div
from ocvtp_kernels.linear.triton_forward import LN_EPS, linear_kernel
from ocvtp_kernels.slots.folded import MASS_EPS
from ocvtp_kernels.slots.tiles import iterations_tile
from ocvtp_kernels.slots.triton_compete import compete_kernel
from ocvtp_kernels.slots.triton_forward import Plan
from ocvtp_kernels.slots.triton_gru import gru_kernel

PHASES = 5  # of an iteration: compete, GRU, FFN up, FFN down, the next query


@triton.jit
def grid_barrier(arrived, target):
    """Waits until ``target`` arrivals: all programs of the grid, once a phase."""
    tl.debug_barrier()
    seen = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") + 1
    while seen < target:
        seen = tl.atomic_add(arrived, 0, sem="acq_rel", scope="gpu")
    tl.debug_barrier()


@triton.jit(do_not_specialize=["first_phase", "last_phase", "groups", "groups_per_program"])
def iterations_kernel(
    slots_init,
    tokens,
    q,
    constant,
    partial,
    partial_mass,
    arrivals,
    updates,
    mass,
    state,
    hidden,
    slots,
    query_weight,
    query_bias,
    gates_weight,
    gates_shift,
    gates_bias,
    hidden_weight,
    hidden_bias,
    ffn_w1,
    ffn_b1,
    ffn_w2,
    ffn_b2,
    arrived,
    batch,
    num_slots,
    num_tokens,
    dim,
    ffn_width,
    init_image_stride,
    init_row_stride,
    tokens_image_stride,
    tokens_row_stride,
    groups,
    groups_per_program,
    blocks_per_group,
    first_phase,
    last_phase,
    eps,
    mass_eps,
    SLOTS: tl.constexpr,
    TOKENS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GRU_DEPTH: tl.constexpr,
    LINEAR_DEPTH: tl.constexpr,
    BARRIER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Phases ``first_phase`` to ``last_phase``, five an iteration, by all programs of the grid.

    The first copies ``slots_init`` into ``slots``, so that every iteration reads the same place.
    """
    first_program = tl.program_id(0)
    programs = tl.num_programs(0)
    rows = batch * num_slots
    row_blocks = tl.cdiv(rows, ROWS)
    for phase in range(first_phase, last_phase):
        step = phase % 5
        if phase == 0:
            for skipped in range(0, rows - first_program, programs):
                row = first_program + skipped
                image = (row // num_slots).to(tl.int64)
                source = slots_init + image * init_image_stride
                source += (row % num_slots).to(tl.int64) * init_row_stride
                for start in range(0, dim, TOKENS):
                    channel = start + tl.arange(0, TOKENS)
                    value = tl.load(source + channel, mask=channel < dim)
                    there = slots + row.to(tl.int64) * dim + channel
                    tl.store(there, value.to(tl.float32), mask=channel < dim)
        if step == 0:
            shares = tl.cdiv(groups, groups_per_program)
            for skipped in range(0, batch * tl.cdiv(dim, CHUNK) * shares - first_program, programs):
                compete_kernel(
                    first_program + skipped,
                    q,
                    tokens,
                    tokens,
                    constant,
                    q,
                    mass,
                    partial,
                    partial_mass,
                    arrivals,
                    updates,
                    mass,
                    updates,
                    num_slots,
                    num_tokens,
                    dim,
                    dim,
                    1.0,
                    eps,
                    mass_eps,
                    num_slots * dim,
                    dim,
                    tokens_image_stride,
                    tokens_row_stride,
                    tokens_image_stride,
                    tokens_row_stride,
                    groups,
                    groups_per_program,
                    blocks_per_group,
                    True,
                    True,
                    False,
                    False,
                    False,
                    SLOTS,
                    TOKENS,
                    DEPTH,
                    CHUNK,
                    PRECISION,
                )
        elif step == 1:
            for skipped in range(0, row_blocks * tl.cdiv(dim, COLUMNS) - first_program, programs):
                gru_kernel(
                    first_program + skipped,
                    updates,
                    slots,
                    gates_weight,
                    hidden_weight,
                    gates_bias,
                    hidden_bias,
                    gates_shift,
                    mass,
                    state,
                    rows,
                    num_slots,
                    dim,
                    dim,
                    num_slots * dim,
                    dim,
                    mass_eps,
                    True,
                    ROWS,
                    COLUMNS,
                    GRU_DEPTH,
                    PRECISION,
                )
        elif step == 2:
            for skipped in range(
                0, row_blocks * tl.cdiv(ffn_width, COLUMNS) - first_program, programs
            ):
                linear_kernel(
                    first_program + skipped,
                    state,
                    ffn_w1,
                    ffn_b1,
                    hidden,
                    hidden,
                    hidden,
                    rows,
                    num_slots,
                    dim,
                    ffn_width,
                    num_slots * dim,
                    dim,
                    ffn_width,
                    eps,
                    True,
                    True,
                    False,
                    False,
                    ROWS,
                    COLUMNS,
                    LINEAR_DEPTH,
                    PRECISION,
                )
        elif step == 3:
            for skipped in range(0, row_blocks * tl.cdiv(dim, COLUMNS) - first_program, programs):
                linear_kernel(
                    first_program + skipped,
                    hidden,
                    ffn_w2,
                    ffn_b2,
                    state,
                    slots,
                    slots,
                    rows,
                    num_slots,
                    ffn_width,
                    dim,
                    num_slots * ffn_width,
                    ffn_width,
                    dim,
                    eps,
                    False,
                    False,
                    True,
                    False,
                    ROWS,
                    COLUMNS,
                    LINEAR_DEPTH,
                    PRECISION,
                )
        else:
            for skipped in range(
                0, row_blocks * tl.cdiv(dim + 1, COLUMNS) - first_program, programs
            ):
                linear_kernel(
                    first_program + skipped,
                    slots,
                    query_weight,
                    query_bias,
                    q,
                    q,
                    constant,
                    rows,
                    num_slots,
                    dim,
                    dim + 1,
                    num_slots * dim,
                    dim,
                    dim,
                    eps,
                    True,
                    False,
                    False,
                    True,
                    ROWS,
                    COLUMNS,
                    LINEAR_DEPTH,
                    PRECISION,
                )
        if BARRIER:
            if phase < last_phase - 1:
                grid_barrier(arrived, (phase - first_phase + 1) * programs)


class Iterations(NamedTuple):
    """What the iterations read and write.

    Attributes:
        slots_init: ``[B, K, D]``; tokens: ``[B, N, D]``; neighbours of the last dimension adjacent.
        q, updates: ``[B, K, D]``; hidden: ``[B, K, F]``, in the dtype of ``tokens``.
        constant, mass: float32 ``[B, K]``; state, slots: float32 ``[B, K, D]``.
        partial, partial_mass, arrivals: as in `ocvtp_kernels.slots.triton_forward.Scratch`.
        arrived: int32 ``[1]``, zero.
    """

    slots_init: Tensor
    tokens: Tensor
    q: Tensor
    constant: Tensor
    updates: Tensor
    mass: Tensor
    state: Tensor
    hidden: Tensor
    slots: Tensor
    partial: Tensor | None
    partial_mass: Tensor | None
    arrivals: Tensor
    arrived: Tensor


def iterate(
    work: Iterations, weights: FoldedSlots, cut: Plan, count: int, together: bool = True
) -> None:
    """``count`` whole iterations from q' of ``slots_init`` to q' of the last slots.

    Args:
        work: q and its constant hold the first query, and then the last.
        cut: the competition's plan.
        together: one cooperative launch; else one launch a phase.
    """
    chip = chip_of(work.q.device)
    batch, num_slots, dim = work.q.shape
    tile = iterations_tile(chip, work.q.dtype, batch * num_slots)
    absent = work.q
    arguments = {
        **{name: absent if (t := getattr(work, name)) is None else t for name in work._fields},
        **{name: getattr(weights, name) for name in weights._fields},
        "batch": batch,
        "num_slots": num_slots,
        "num_tokens": work.tokens.shape[1],
        "dim": dim,
        "ffn_width": work.hidden.shape[2],
        "init_image_stride": work.slots_init.stride(0),
        "init_row_stride": work.slots_init.stride(1),
        "tokens_image_stride": work.tokens.stride(0),
        "tokens_row_stride": work.tokens.stride(1),
        "groups": cut.groups,
        "groups_per_program": ceil_div(cut.groups, cut.shares),
        "blocks_per_group": cut.blocks_per_group,
        "eps": LN_EPS,
        "mass_eps": MASS_EPS,
        "SLOTS": cut.tile.slots,
        "TOKENS": cut.tile.tokens,
        "DEPTH": cut.tile.depth,
        "CHUNK": cut.tile.chunk,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "GRU_DEPTH": tile.gru_depth,
        "LINEAR_DEPTH": tile.linear_depth,
        "BARRIER": together,
        "PRECISION": dot_precision(work.q.dtype),
    }
    last = PHASES * count
    for first in range(0, last, last if together else 1):
        launch(
            iterations_kernel,
            (chip.multiprocessors,),
            {
                **arguments,
                "first_phase": first,
                "last_phase": last if together else first + 1,
            },
            num_warps=tile.warps,
            num_stages=tile.stages,
            launch_cooperative_grid=together,
        )
