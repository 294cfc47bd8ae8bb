"""Argmax and gather on Triton kernels beside the reference: ids equal, ties included."""

from __future__ import annotations

import pytest
import torch

from ocvtp_kernels import ops
from ocvtp_kernels.ops.argmax_gather import gather_tokens
from tests.cases import DEVICE, assert_kept, random_tokens, to_device
from tests.ops.attention_cases import queries

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.argmax_gather.triton import argmax_gather
from ocvtp_kernels.ops.slot_argmax.triton import slot_argmax

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]


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


def test_ties_go_to_the_lowest_id() -> None:
    q, k = torch.ones(1, 3, 8, device=DEVICE), torch.ones(1, 70, 8, device=DEVICE)
    ids, max_prob = slot_argmax(q, k)
    assert (ids == 0).all()
    assert torch.allclose(max_prob, torch.full_like(max_prob, 1 / 3))
    _, kept = argmax_gather(q, k, k, None, 4)
    assert kept.tolist() == [[0, 1, 2, 3]]


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
