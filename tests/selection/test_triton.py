"""The selection kernels beside the reference: ids equal, ties and NaN included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops
from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.ops.slot_attention.reference import slot_logits
from tests.cases import (
    DEVICE,
    assert_kept,
    assert_within_budget,
    random_tokens,
    to_device,
    triton_dtypes,
)

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.argmax_gather.triton import argmax_gather
from ocvtp_kernels.ops.resolve_picks.triton import resolve_picks
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


def queries(
    batch: int, num_slots: int, num_tokens: int, dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    q = random_tokens(batch, num_slots, dim, dtype=dtype)
    return q, random_tokens(batch, num_tokens + 1, dim, seed=1, dtype=dtype)[:, 1:]


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


@pytest.mark.parametrize("with_importance", [False, True])
@pytest.mark.parametrize(
    ("num_slots", "num_tokens", "budget", "top_k"),
    [
        (1, 1, 1, 1),
        (7, 50, 9, 1),
        (7, 50, 3, 1),
        (7, 33, 33, 1),
        (64, 577, 64, 1),
        (100, 576, 30, 1),
        (160, 70, 64, 1),
        (7, 33, 20, 3),
        (130, 70, 9, 2),
        (2, 5, 5, 5),
    ],
)
def test_argmax_gather_keeps_what_the_reference_keeps(
    num_slots: int, num_tokens: int, budget: int, top_k: int, with_importance: bool
) -> None:
    q, k = queries(3, num_slots, num_tokens, 16, torch.float32)
    final_tokens = random_tokens(3, 11, num_tokens, seed=2).transpose(1, 2)
    # Few values, so that most are ties.
    importance = random_tokens(3, num_tokens, seed=3).round() if with_importance else None
    expected = ops.argmax_gather.reference(
        q.double(), k.double(), final_tokens, importance, budget, 0.3, top_k
    )
    tokens, ids = (
        t.cpu()
        for t in argmax_gather(
            to_device(q),
            to_device(k),
            to_device(final_tokens),
            None if importance is None else to_device(importance),
            budget,
            0.3,
            top_k,
        )
    )
    assert_kept(ids, budget, num_tokens)
    assert torch.equal(ids, expected[1])
    assert torch.equal(tokens, expected[0])


@pytest.mark.parametrize("with_importance", [False, True])
@pytest.mark.parametrize(
    ("num_slots", "num_tokens", "budget", "top_k"),
    [(1, 1, 1, 1), (7, 33, 5, 1), (300, 40, 40, 1), (9, 33, 20, 4), (64, 5000, 64, 1)],
)
def test_picks_resolve_as_the_reference_resolves_them(
    num_slots: int, num_tokens: int, budget: int, top_k: int, with_importance: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    topk_ids = torch.randint(num_tokens, (2, num_slots, top_k), generator=generator)
    max_logprob = random_tokens(2, num_slots).round()
    max_logprob[0, 0] = float("nan")
    importance = (
        random_tokens(2, num_tokens + 1, seed=1)[:, 1:].round() if with_importance else None
    )
    if importance is not None:
        importance[:, ::3], importance[:, 1::5] = float("nan"), -0.0
    expected = ops.resolve_picks.reference(topk_ids, max_logprob, importance, budget, num_tokens)
    ids = resolve_picks(
        topk_ids.to(DEVICE),
        max_logprob.to(DEVICE),
        None if importance is None else to_device(importance),
        budget,
        num_tokens,
    )
    assert torch.equal(ids.cpu(), expected)


def test_ties_go_to_the_lowest_id() -> None:
    q, k = torch.ones(1, 3, 8, device=DEVICE), torch.ones(1, 70, 8, device=DEVICE)
    ids, max_prob = slot_argmax(q, k)
    assert (ids == 0).all()
    assert torch.allclose(max_prob, torch.full_like(max_prob, 1 / 3))
    _, kept = argmax_gather(q, k, k, None, 4)
    assert kept.tolist() == [[0, 1, 2, 3]]


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


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.complex128],
)
def test_rows_of_any_dtype_are_copied(dtype: torch.dtype) -> None:
    q, k = (to_device(t) for t in queries(2, 7, 50, 16, torch.float32))
    final_tokens = (random_tokens(2, 50, 6, seed=2) * 9).to(dtype).to(DEVICE)
    tokens, ids = argmax_gather(q, k, final_tokens, None, 9)
    assert tokens.dtype == dtype
    assert torch.equal(tokens, gather_tokens(final_tokens, ids))


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
