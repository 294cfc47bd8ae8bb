"""All iterations in one cooperative launch: the chain's kernels as phases, a grid barrier between.

For small batches, where an iteration is five launches of a few microseconds each and a barrier may
cost less than a launch. Every phase is the kernel that the chain launches by itself, so the results
are the same bits. `ocvtp_kernels.slots.cooperative` launches it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ocvtp_kernels.linear.triton_forward import linear_kernel
from ocvtp_kernels.slots.triton_compete import compete_kernel
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
