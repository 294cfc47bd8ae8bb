"""The whole way on Triton kernels: what ``ocvtp::prune`` runs on a GPU of sm_80 or newer.

A fixed list of launches on the current stream, none waiting for the host: 14 with two encode
Linears, three iterations and at most 128 slots. All scratch is one allocation of a size that shapes
fix. It is taken anew at every call: a buffer kept between calls would be shared by streams and by
CUDA graphs, whereas torch's allocator hands back the same memory where that is safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.encode.triton_forward import encode
from ocvtp_kernels.fold import Folded, unpack
from ocvtp_kernels.gpu.chips import chip_of
from ocvtp_kernels.gpu.launch import unit_stride
from ocvtp_kernels.linear.triton_forward import Linear, linear
from ocvtp_kernels.selection.triton_forward import picks_of, select
from ocvtp_kernels.slots.cooperative import Iterations, iterate
from ocvtp_kernels.slots.folded import MASS_EPS
from ocvtp_kernels.slots.tiles import BLOCK, persistent
from ocvtp_kernels.slots.triton_forward import Competition, Plan, Scratch, compete, plan
from ocvtp_kernels.slots.triton_gru import gru

ALIGNMENT = 256  # bytes, as torch's own allocations


class Workspace(NamedTuple):
    """Everything between the inputs and the outputs."""

    encoded: list[Tensor]  # [B, N, width] of each encode Linear
    q: Tensor  # [B, K, D]
    constant: Tensor  # float32 [B, K]
    updates: Tensor  # [B, K, D]
    mass: Tensor  # float32 [B, K]
    state: Tensor  # float32 [B, K, D], slots between GRU and FFN
    hidden: Tensor  # [B, K, F]
    slots: Tensor  # float32 [B, K, D]
    scratch: Scratch
    arrived: Tensor  # int32 [1]
    counters: Tensor  # int32, arrived and the scratch's arrivals: cleared together


def carve(
    shapes: Sequence[tuple[tuple[int, ...], torch.dtype]], device: torch.device
) -> list[Tensor]:
    """Tensors of these shapes and dtypes, out of one allocation."""
    sizes = [-(-prod(s) * d.itemsize // ALIGNMENT) * ALIGNMENT for s, d in shapes]
    memory = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
    pieces = memory.split(sizes)
    return [
        piece[: prod(shape) * dtype.itemsize].view(dtype).view(shape)
        for piece, (shape, dtype) in zip(pieces, shapes, strict=True)
    ]


def workspace(reference: Tensor, slots: Tensor, folded: Folded, cut: Plan) -> Workspace:
    """Scratch for one call."""
    batch, num_tokens, _ = reference.shape
    num_slots, dim = slots.shape[1:]
    dtype, wide, by_slot = reference.dtype, torch.float32, (batch, num_slots)
    partial, partial_mass, arrivals = cut.partial_numbers()
    tensors = carve(
        [
            *(((batch, num_tokens, w.shape[0]), dtype) for w in folded.encode_weights),
            ((*by_slot, dim), dtype),
            (by_slot, wide),
            ((*by_slot, dim), dtype),
            (by_slot, wide),
            ((*by_slot, dim), wide),
            ((*by_slot, folded.slots.ffn_w1.shape[0]), dtype),
            ((*by_slot, dim), wide),
            ((batch, num_tokens if cut.standings else 0, 2), wide),
            ((partial,), wide),
            ((partial_mass,), wide),
            ((1 + arrivals,), torch.int32),
        ],
        reference.device,
    )
    *encoded, q, constant, updates, mass, state, hidden, after = tensors[:-4]
    standings, *shares = (piece if piece.numel() else None for piece in tensors[-4:-1])
    counters = tensors[-1]
    scratch = Scratch(standings, shares[0], shares[1], counters[1:] if arrivals else counters)
    return Workspace(
        encoded, q, constant, updates, mass, state, hidden, after, scratch, counters[:1], counters
    )


def prune_triton(
    reference: Tensor,
    final: Tensor,
    weights: Sequence[Tensor],
    slots_init: Tensor,
    importance: Tensor | None,
    budget: int,
    top_k: int = 1,
    together: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """`ocvtp_kernels.chain.prune_reference` with sums and slots in float32.

    Args:
        together: run the iterations as one cooperative launch, or, False, never; None asks the
            table of what was measured.

    Raises:
        ValueError: ``together`` is True and there are more slots than the launch holds.
    """
    competition, standings = _compete(reference, weights, slots_init, together)
    return select(competition, final, importance, budget, top_k, standings)


def picks_triton(
    reference: Tensor, weights: Sequence[Tensor], slots_init: Tensor, top_k: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """`ocvtp_kernels.chain.picks_reference` with sums and slots in float32."""
    competition, standings = _compete(reference, weights, slots_init, None)
    return picks_of(competition, top_k, standings)


def _compete(
    reference: Tensor, weights: Sequence[Tensor], slots_init: Tensor, together: bool | None
) -> tuple[Competition, Tensor | None]:
    """All but the last iteration; its competition, and room for its standings."""
    folded = unpack([weight.contiguous() for weight in weights])
    reference, slots = unit_stride(reference), unit_stride(slots_init)
    cut = plan(slots, reference.shape[1], slots.shape[2])
    space = workspace(reference, slots, folded, cut)
    tokens = encode(reference, folded, space.encoded, _query(slots, folded, space), space.counters)
    competition = Competition(space.q, tokens, norm=True, constant=space.constant)
    batch, num_slots, _ = slots.shape
    if together and num_slots > BLOCK:
        raise ValueError(f"together: expected at most {BLOCK} slots, got {num_slots}")
    if together is None:
        together = persistent(chip_of(slots.device), batch * num_slots, num_slots)
    if together and folded.num_iter > 1:
        iterate(_work(slots, tokens, space), folded.slots, cut, folded.num_iter - 1)
    else:
        for _ in range(folded.num_iter - 1):
            _update(slots, competition, folded, space, cut)
            slots = space.slots
            linear(_query(slots, folded, space))
    return competition, space.scratch.standings


def _query(slots: Tensor, folded: Folded, space: Workspace) -> Linear:
    """The query q' of these slots, and its constant."""
    weights = folded.slots
    return Linear(
        slots, weights.query_weight, weights.query_bias, space.q, norm=True, tail=space.constant
    )


def _work(slots: Tensor, tokens: Tensor, space: Workspace) -> Iterations:
    """The workspace as the cooperative launch takes it."""
    return Iterations(
        slots_init=slots,
        tokens=tokens,
        q=space.q,
        constant=space.constant,
        updates=space.updates,
        mass=space.mass,
        state=space.state,
        hidden=space.hidden,
        slots=space.slots,
        partial=space.scratch.partial,
        partial_mass=space.scratch.partial_mass,
        arrivals=space.scratch.arrivals,
        arrived=space.arrived,
    )


def _update(
    slots: Tensor, competition: Competition, folded: Folded, space: Workspace, cut: Plan
) -> None:
    """One iteration past its query: competition, mean, GRU and FFN, into ``space.slots``."""
    weights = folded.slots
    compete(competition, competition.k, MASS_EPS, space.updates, space.mass, cut, space.scratch)
    gru(
        space.updates,
        slots,
        weights.gates_weight,
        weights.hidden_weight,
        weights.gates_bias,
        weights.hidden_bias,
        space.state,
        weights.gates_shift,
        space.mass,
        MASS_EPS,
    )
    linear(Linear(space.state, weights.ffn_w1, weights.ffn_b1, space.hidden, norm=True, gelu=True))
    linear(Linear(space.hidden, weights.ffn_w2, weights.ffn_b2, space.slots, residual=space.state))
