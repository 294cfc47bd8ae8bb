"""Merging on the CPU: weighted means, and the gradient of the assignment that was made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import use_backend
from ocvtp_kernels.ops.slot_attention.reference import slot_logits
from tests.cases import CPU_BACKENDS, assert_within_budget, random_tokens, running
from tests.ops.attention_cases import exact_attention, inputs, strided_qkv
from tests.ops.raw_calls import FLOATING, B, E, N, RawCall, queries_keys

EVERY_BACKEND = pytest.mark.parametrize("backend", CPU_BACKENDS)


def arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    return strided_qkv(batch, dtype)


RAW_CALLS = {
    "merge": RawCall(
        queries_keys(final=random_tokens(B, N, E), scale=0.3),
        {"q": ["size 1 *"], "final": ["size 2 *", *FLOATING]},
        measures=("q", "k"),
        cpu_only=True,
    ),
}


def merged_by_hand(q: Tensor, k: Tensor, final_tokens: Tensor) -> tuple[Tensor, Tensor]:
    attention = exact_attention(q, k)
    merged = torch.zeros(q.shape[0], q.shape[1], final_tokens.shape[2], dtype=torch.float64)
    mass = torch.zeros(q.shape[:2], dtype=torch.float64)
    for image in range(q.shape[0]):
        for token in range(k.shape[1]):
            column = attention[image, :, token]
            slot = int(column.argmax())
            merged[image, slot] += column[slot] * final_tokens[image, token].double()
            mass[image, slot] += column[slot]
    return merged / mass.clamp_min(1e-30)[..., None], mass


@EVERY_BACKEND
def test_merge_is_the_weighted_mean_of_a_slots_tokens(backend: str) -> None:
    q, k, final_tokens = inputs(40, 33, torch.float64)
    with running(backend):
        merged, mass = torch.ops.ocvtp.merge(q, k, final_tokens)
    expected, expected_mass = merged_by_hand(q, k, final_tokens)
    torch.testing.assert_close(merged, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mass, expected_mass, rtol=1e-12, atol=1e-12)
    # More slots than tokens: the mass of some is zero.
    assert (mass == 0).any() and (merged[mass == 0] == 0).all()


@EVERY_BACKEND
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_merge_error_budget(backend: str, dtype: torch.dtype) -> None:
    q, k, final_tokens = inputs(7, 577, dtype)
    with running(backend):
        merged, _ = torch.ops.ocvtp.merge(q, k, final_tokens)
    with use_backend("reference"):
        plain, _ = torch.ops.ocvtp.merge(q, k, final_tokens)
    assert_within_budget(merged, plain, merged_by_hand(q, k, final_tokens)[0])


@EVERY_BACKEND
@pytest.mark.parametrize(
    ("narrow", "wide"), [(torch.float32, torch.float64), (torch.float16, torch.float32)], ids=str
)
def test_merge_takes_final_tokens_of_another_dtype(
    backend: str, narrow: torch.dtype, wide: torch.dtype
) -> None:
    for dtype, of_final in ((narrow, wide), (wide, narrow)):
        q, k, _ = inputs(7, 70, dtype)
        # Rows that stand apart, and whose channels do.
        final_tokens = random_tokens(3, 6, 70, seed=2, dtype=of_final).mT[..., 1:]
        with running(backend):
            got = torch.ops.ocvtp.merge(q, k, final_tokens)
        with use_backend("reference"):
            plain = torch.ops.ocvtp.merge(q, k, final_tokens)
        assert [x.dtype for x in got] == [of_final, dtype]
        for ours, theirs, exact in zip(got, plain, merged_by_hand(q, k, final_tokens), strict=True):
            assert_within_budget(ours, theirs, exact)


@EVERY_BACKEND
def test_merge_gives_ties_and_nan_to_the_first_slot(backend: str) -> None:
    q, k, final_tokens = inputs(7, 70)
    # Products of whole numbers do not round.
    q, k = q.round(), k.round()
    q[:, 5] = q[:, 3]
    k[0, 20] = 0
    k[1, 40] = torch.nan
    with running(backend):
        merged, mass = torch.ops.ocvtp.merge(q, k, final_tokens)
    attention = slot_logits(q, k, None).softmax(dim=1)
    assert (mass[:, 5] == 0).all() and (mass[:, 3] > 0).all()
    owned = attention.argmax(1)[..., None] == torch.arange(7)
    assert owned[0, 20, 0] and owned[1, 40, 0]
    owned_attention = attention.where(owned.mT, 0)
    torch.testing.assert_close(mass, owned_attention.sum(-1), equal_nan=True)
    spoilt = torch.zeros(3, 7, dtype=torch.bool)
    spoilt[1, 0] = True
    assert torch.equal(mass.isnan(), spoilt)
    assert torch.equal(merged.isnan().all(-1), spoilt) and torch.equal(
        merged.isnan().any(-1), spoilt
    )


def test_merge_gradient_in_final() -> None:
    q, k, final_tokens = inputs(4, 9, torch.float64)
    final_tokens.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: torch.ops.ocvtp.merge(q, k, f)[0], final_tokens)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_gradient_is_the_adjoint_of_what_was_merged(backend: str, dtype: torch.dtype) -> None:
    # Alike slots: rounded to bfloat16 the logits of many tie.
    q = (1 + random_tokens(2, 40, 24) / 64).to(dtype)
    k, grad = (random_tokens(2, size, 24, seed=size).to(dtype) for size in (50, 40))
    final_tokens = random_tokens(2, 50, 24, seed=3).to(dtype).requires_grad_()
    with running(backend):
        merged, _ = torch.ops.ocvtp.merge(q, k, final_tokens)
        (got,) = torch.autograd.grad(merged, final_tokens, grad)
    # By channels: sum over slots of merged times grad is sum over tokens of final times its own.
    first = (merged.double() * grad.double()).sum(dim=1)
    second = (final_tokens.double() * got.double()).sum(dim=1)
    torch.testing.assert_close(first, second, rtol=0, atol=40 * torch.finfo(dtype).eps)
