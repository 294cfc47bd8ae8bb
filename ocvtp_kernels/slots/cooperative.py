"""Launches the iterations of `ocvtp_kernels.slots.triton_iterations` together, or phase by phase.

A phase alone needs no grid barrier, so it also runs in Triton's interpreter.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ocvtp_kernels.fold import FoldedSlots
from ocvtp_kernels.gpu.chips import chip_of
from ocvtp_kernels.gpu.launch import dot_precision, launch
from ocvtp_kernels.linear.tiles import ceil_div
from ocvtp_kernels.linear.triton_forward import LN_EPS
from ocvtp_kernels.slots.folded import MASS_EPS
from ocvtp_kernels.slots.tiles import iterations_tile
from ocvtp_kernels.slots.triton_forward import Plan
from ocvtp_kernels.slots.triton_iterations import PHASES, iterations_kernel


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
