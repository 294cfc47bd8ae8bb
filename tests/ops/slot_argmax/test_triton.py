"""The slots' argmax kernels beside the reference: ids equal, ties and NaN included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops
from ocvtp_kernels.ops.slot_attention.reference import slot_logits
from tests.cases import DEVICE, assert_within_budget, to_device, triton_dtypes
from tests.ops.attention_cases import queries

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.slot_argmax.tiles import argmax_tile
from ocvtp_kernels.ops.slot_argmax.triton import slot_argmax
from ocvtp_kernels.ops.slot_attention.tiles import slot_attention_fwd_tile, softmax_stats_tile
from ocvtp_kernels.triton_common.archs import ARCHS, GpuArch

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

SLOTS = (1, 7, 64, 65, 100, 128, 160, 192)
TOKENS = (1, 50, 576, 577)


def sizes_of(slots: Sequence[int], tokens: Sequence[int], dim: int) -> Iterator[Any]:
    """Slots, tokens and width; the large ones are slow."""
    for num_slots, num_tokens in product(slots, tokens):
        slow = num_slots * num_tokens * dim > 2_000_000
        yield pytest.param(num_slots, num_tokens, dim, marks=pytest.mark.slow if slow else ())


def scores_of(q: Tensor, k: Tensor) -> Tensor:
    """The attention in float64, at a scale that spreads it."""
    return slot_logits(q.double(), k.double(), 2 * q.shape[-1] ** -0.5).softmax(1)


@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize(
    ("num_slots", "num_tokens", "dim"),
    [
        *sizes_of(SLOTS, TOKENS, 64),
        *sizes_of((7, 64, 128, 192), (50, 577), 512),
    ],
)
def test_each_slots_best_token(
    num_slots: int, num_tokens: int, dim: int, dtype: torch.dtype
) -> None:
    # Where numbers are few, more images: the worst error of a few is a matter of luck.
    batch = 2 if num_tokens > 50 else min(16, 1024 // num_slots)
    q, k = queries(batch, num_slots, num_tokens, dim, dtype)
    scale = 2 * dim**-0.5
    ids, max_prob = (t.cpu() for t in slot_argmax(to_device(q), to_device(k), scale))
    attention = scores_of(q, k)
    best = attention.amax(-1)
    taken = attention.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    if dtype == torch.float32:
        assert torch.equal(ids, ops.slot_argmax.reference(q, k, scale)[0])
    assert (taken >= (1 - 1e-2) * best).all()
    plain = ops.slot_argmax.reference(q, k, scale)[1]
    assert_within_budget(max_prob, plain, best)


def test_a_token_that_is_nan_is_never_picked() -> None:
    q, k = (to_device(t) for t in queries(1, 7, 50, 16, torch.float32))
    k[0, ::2] = float("nan")
    ids, _ = slot_argmax(q, k)
    assert (ids % 2 == 1).all()


def test_an_attention_of_almost_one_still_ranks_its_tokens() -> None:
    # A slot that leads everywhere by more than float32's softmax resolves.
    lead = torch.tensor([20.0, 24.0, 22.0, 18.0])
    q = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).to(DEVICE)
    k = torch.stack([lead, torch.zeros(4)], dim=-1).unsqueeze(0).to(DEVICE)
    ids, _ = slot_argmax(q, k, 1.0)
    assert ids[0, 0] == 1


@pytest.mark.parametrize("arch", ARCHS.values(), ids=lambda arch: f"sm_{arch.capability}")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_logits_are_computed_alike_wherever_softmax_stats_are_used(
    arch: GpuArch, dtype: torch.dtype
) -> None:
    made = softmax_stats_tile(arch, dtype)
    assert argmax_tile(arch, dtype, 160) == made
    for batch, num_slots in product((1, 64), (7, 64, 128, 160)):
        assert (
            slot_attention_fwd_tile(arch, dtype, batch, num_slots, 576, 512).block_k == made.block_k
        )
        assert argmax_tile(arch, dtype, num_slots).block_k == made.block_k
