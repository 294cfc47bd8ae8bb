"""Each slot's largest attention on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ocvtp_kernels.ops.slot_attention.reference import slot_logits
from tests.cases import CPU_BACKENDS, assert_within_budget, running
from tests.ops.attention_cases import exact_attention, inputs, strided_qkv
from tests.ops.raw_calls import PER_SLOT, N, RawCall, queries_keys

EVERY_BACKEND = pytest.mark.parametrize("backend", CPU_BACKENDS)


def arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    q, k, _ = strided_qkv(batch, dtype)
    return q, k, 0.3


RAW_CALLS = {
    "slot_argmax": RawCall(
        queries_keys(constant=PER_SLOT["constant"], scale=0.3, top_k=2, with_evidence=True),
        {"k": ["size 1 [-+]*"], "constant": ["none"]},
        {"top_k": (1, N)},
        measures=("q", "k"),
    ),
    "slot_argmax_packed": RawCall(
        queries_keys(constant=PER_SLOT["constant"], scale=0.3, with_evidence=True),
        {"k": ["size 1 [-+]*"], "constant": ["none"]},
        measures=("q", "k"),
    ),
}


@EVERY_BACKEND
@pytest.mark.parametrize("num_slots", [1, 7, 64, 65, 100])
@pytest.mark.parametrize("num_tokens", [1, 50, 577])
def test_slot_argmax_is_exact_in_float32(backend: str, num_slots: int, num_tokens: int) -> None:
    q, k, _ = inputs(num_slots, num_tokens)
    with running(backend):
        ids, max_prob = torch.ops.ocvtp.slot_argmax(q, k)
    exact = exact_attention(q, k)
    if num_slots > 1:
        assert torch.equal(ids, exact.argmax(-1))
    else:
        # One slot takes all of every token: all tie, and the lowest id wins.
        assert (ids == 0).all()
    assert_within_budget(max_prob, slot_logits(q, k, None).softmax(dim=1).amax(-1), exact.amax(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("outliers", [False, True])
def test_half_precision_regret(dtype: torch.dtype, outliers: bool) -> None:
    q, k, _ = inputs(64, 577, dtype, outliers)
    ids, _ = torch.ops.ocvtp.slot_argmax(q, k)
    exact = exact_attention(q, k)
    chosen = exact.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    assert (chosen >= (1 - 1e-2) * exact.amax(-1)).all()


@EVERY_BACKEND
def test_tokens_are_ranked_where_the_attention_rounds_to_one(backend: str) -> None:
    # Slot 0 leads by 20 and more, so that its float32 attention is 1 on every token.
    lead = 20 + torch.arange(30.0).roll(11)
    q, k = torch.eye(2)[None], torch.stack([lead, torch.zeros(30)], dim=-1)[None]
    assert (slot_logits(q, k, 1.0).softmax(dim=1)[0, 0] == 1).all()
    with running(backend):
        ids, max_prob = torch.ops.ocvtp.slot_argmax(q, k, 1.0)
    assert ids[0].tolist() == [int(lead.argmax()), int(lead.argmin())]
    assert max_prob[0, 0] == 1
