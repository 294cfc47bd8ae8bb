"""The whole pipeline on Triton kernels: what ``ocvtp::prune`` runs on a GPU of sm_80 or newer.

A fixed list of launches on the current stream, none waiting for the host: 20 with two encode
Linears, three iterations and at most 128 slots. All scratch is one allocation of a size that shapes
fix. It is taken anew at every call: a buffer kept between calls would be shared by streams and by
CUDA graphs, whereas torch's allocator hands back the same memory where that is safe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.ops.argmax_gather.triton import select
from ocvtp_kernels.ops.gru_cell.triton.forward import gru
from ocvtp_kernels.ops.prune.folded_slots import MASS_EPS
from ocvtp_kernels.ops.prune.triton.encode import EncodeSpace, encode, norm_after
from ocvtp_kernels.ops.prune.weights import Folded, unpack
from ocvtp_kernels.ops.slot_argmax.triton import topk_of
from ocvtp_kernels.ops.slot_attention.triton.forward import (
    Plan,
    Scratch,
    SlotAttentionArgs,
    compete,
    plan,
)
from ocvtp_kernels.triton_common.launch import unit_stride
from ocvtp_kernels.triton_common.layer_norm import LayerNorm, layer_norm
from ocvtp_kernels.triton_common.linear import Linear, Statistics, linear
from ocvtp_kernels.triton_common.prepared import prepared
from ocvtp_kernels.triton_common.recorder import ALIGNMENT

Sizes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
# What a workspace has by slot, and `workspace` by the same name.
BY_SLOT = ("q", "constant", "normed", "updates", "mass", "state", "hidden", "slots")


class Workspace(NamedTuple):
    """Everything between the inputs and the outputs."""

    encode: EncodeSpace
    q: Tensor  # [B, K, D]
    constant: Tensor  # float32 [B, K]
    normed: Tensor  # [B, K, D], LayerNorm of the slots or of the state
    updates: Tensor  # [B, K, D]
    mass: Tensor  # float32 [B, K]
    state: Tensor  # float32 [B, K, D], slots between GRU and FFN
    hidden: Tensor  # [B, K, F]
    slots: Tensor  # float32 [B, K, D]
    h: Tensor  # [B, K, D], the slots as the GRU's GEMM reads them
    scratch: Scratch


def carve(lasting: Sizes, phases: Sequence[Sizes], device: torch.device) -> dict[str, Tensor]:
    """Tensors of these shapes and dtypes, out of one allocation.

    Args:
        lasting: what keeps its place throughout.
        phases: what lives in one phase alone; all phases lie in the same place.
    """
    places: dict[str, int] = {}

    def place(sizes: Sizes, end: int) -> int:
        for name, (shape, dtype) in sizes.items():
            places[name] = end
            end += -(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        return end

    first = place(lasting, 0)
    most = max([first, *(place(sizes, first) for sizes in phases)])
    memory = torch.empty(most, dtype=torch.uint8, device=device)
    every = {name: size for sizes in (lasting, *phases) for name, size in sizes.items()}
    return {
        name: memory[places[name] :][: prod(shape) * dtype.itemsize].view(dtype).view(shape)
        for name, (shape, dtype) in every.items()
    }


def workspace(reference: Tensor, slots: Tensor, folded: Folded, cut: Plan) -> Workspace:
    """Scratch for one call."""
    batch, num_tokens, width = reference.shape
    num_slots, dim = slots.shape[1:]
    dtype, wide = reference.dtype, torch.float32
    by_token, by_slot = (batch, num_tokens), (batch, num_slots)
    vectors, counter = (*by_slot, dim), cut.parts if cut.shares > 1 else 1
    partial, partial_mass, _ = cut.partial_numbers()
    after, last = norm_after(folded, dtype), len(folded.encode_weights) - 1
    encoded = {
        f"encoded {depth}": ((*by_token, weight.shape[0]), dtype)
        for depth, weight in enumerate(folded.encode_weights)
    }
    lasting: Sizes = {
        f"encoded {last}": encoded.pop(f"encoded {last}"),
        "q": (vectors, dtype),
        "constant": (by_slot, wide),
        "normed": (vectors, dtype),
        "counters": ((counter,), torch.int32),
    }
    statistics: Sizes = {
        "mean": (by_token, wide),
        "scale": (by_token, wide),
        "weight_mean": ((folded.encode_weights[0].shape[0],), wide),
    }
    tokens: Sizes = {"tokens": ((*by_token, width), dtype)}
    encoding: Sizes = {**encoded, **({} if after is None else statistics if after else tokens)}
    iterating: Sizes = {
        "updates": (vectors, dtype),
        "mass": (by_slot, wide),
        "state": (vectors, wide),
        "hidden": ((*by_slot, folded.slots.ffn_w1.shape[0]), dtype),
        "slots": (vectors, wide),
        **({} if dtype == wide else {"h": (vectors, dtype)}),
        **({"softmax_stats": ((*by_token, 2), wide)} if cut.softmax_stats else {}),
        **({"partial": ((partial,), wide)} if partial else {}),
        **({"partial_mass": ((partial_mass,), wide)} if partial else {}),
    }
    space = carve(lasting, (encoding, iterating), reference.device)
    statistics_of = [space[name] for name in statistics] if after else []
    return Workspace(
        encode=EncodeSpace(
            outputs=[space[f"encoded {depth}"] for depth in range(last + 1)],
            statistics=Statistics(*statistics_of) if after else None,
            normed=space.get("tokens"),
            counters=space["counters"],
        ),
        scratch=Scratch(
            softmax_stats=space.get("softmax_stats"),
            partial=space.get("partial"),
            partial_mass=space.get("partial_mass"),
            arrivals=space["counters"],
        ),
        h=space.get("h", space["slots"]),
        **{name: space[name] for name in BY_SLOT},
    )


@prepared
def prune_triton(
    reference: Tensor,
    final: Tensor,
    weights: Sequence[Tensor],
    slots_init: Tensor,
    importance: Tensor | None,
    budget: int,
    top_k: int = 1,
) -> tuple[Tensor, Tensor]:
    """`ocvtp_kernels.ops.prune.reference.prune_reference` with sums and slots in float32."""
    competition, softmax_stats = _compete(reference, weights, slots_init)
    return select(competition, final, importance, budget, top_k, softmax_stats)


@prepared
def picks_triton(
    reference: Tensor, weights: Sequence[Tensor], slots_init: Tensor, top_k: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """`ocvtp_kernels.ops.prune.reference.picks_reference` with sums and slots in float32."""
    competition, softmax_stats = _compete(reference, weights, slots_init)
    return topk_of(competition, top_k, softmax_stats)


def _compete(
    reference: Tensor, weights: Sequence[Tensor], slots_init: Tensor
) -> tuple[SlotAttentionArgs, Tensor | None]:
    """All but the last iteration; its competition, and room for its softmax_stats."""
    folded = unpack([weight.contiguous() for weight in weights])
    reference, slots = unit_stride(reference), unit_stride(slots_init)
    cut = plan(slots, reference.shape[1], slots.shape[2])
    space = workspace(reference, slots, folded, cut)
    norm, query = _query(slots, folded, space)
    tokens = encode(reference, folded, norm, query, space.encode)
    competition = SlotAttentionArgs(space.q, tokens, constant=space.constant)
    h = slots
    for _ in range(folded.num_iter - 1):
        _update(slots, h, competition, folded, space, cut)
        slots, h = space.slots, space.h
        norm, query = _query(slots, folded, space)
        layer_norm(norm if h is slots else norm._replace(copy=h))
        linear(query)
    return competition, space.scratch.softmax_stats


def _query(slots: Tensor, folded: Folded, space: Workspace) -> tuple[LayerNorm, Linear]:
    """The LayerNorm of these slots, with their constant c, and the query q' from it."""
    weights = folded.slots
    tail = (weights.constant_weight, weights.constant_bias, space.constant)
    return (
        LayerNorm(slots, space.normed, tail=tail),
        Linear(space.normed, weights.query_weight, weights.query_bias, space.q),
    )


def _update(
    slots: Tensor,
    h: Tensor,
    competition: SlotAttentionArgs,
    folded: Folded,
    space: Workspace,
    cut: Plan,
) -> None:
    """One iteration past its query: competition, mean, GRU and FFN, into ``space.slots``."""
    weights = folded.slots
    compete(competition, competition.k, MASS_EPS, space.updates, space.mass, cut, space.scratch)
    gru(
        space.updates,
        h,
        weights.gates_weight,
        weights.hidden_weight,
        weights.gates_bias,
        weights.hidden_bias,
        space.state,
        weights.gates_shift,
        space.mass,
        MASS_EPS,
        slots,
    )
    layer_norm(LayerNorm(space.state, space.normed))
    linear(Linear(space.normed, weights.ffn_w1, weights.ffn_b1, space.hidden, gelu=True))
    linear(Linear(space.hidden, weights.ffn_w2, weights.ffn_b2, space.slots, residual=space.state))
