"""Argmax and gather on the CPU: the tokens kept, and their gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.cases import CPU_BACKENDS, assert_kept, random_tokens, running
from tests.ops.attention_cases import exact_attention, inputs, strided_qkv

EVERY_BACKEND = pytest.mark.parametrize("backend", CPU_BACKENDS)


def arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    return *strided_qkv(batch, dtype), None, 5


@EVERY_BACKEND
@pytest.mark.parametrize("top_k", [1, 2])
def test_equals_its_parts(backend: str, top_k: int) -> None:
    q, k, final_tokens = inputs(7, 33)
    importance = random_tokens(3, 33, seed=5)
    with running(backend):
        tokens, ids = torch.ops.ocvtp.argmax_gather(q, k, final_tokens, importance, 16, top_k=top_k)
    exact = exact_attention(q, k)
    max_prob, topk_ids = exact.topk(top_k, dim=-1)
    expected = torch.ops.ocvtp.resolve_picks(topk_ids, max_prob[..., 0], importance, 16)
    assert torch.equal(ids, expected)
    assert torch.equal(tokens, torch.stack([f[i] for f, i in zip(final_tokens, ids, strict=True)]))


@EVERY_BACKEND
def test_without_importance_the_token_score_pads(backend: str) -> None:
    q, k, final_tokens = inputs(5, 33)
    with running(backend):
        _, ids = torch.ops.ocvtp.argmax_gather(q, k, final_tokens, None, 20)
    exact = exact_attention(q, k)
    for image in range(3):
        picked = set(exact[image].argmax(-1).tolist())
        token_score = exact[image].amax(0)
        rest = sorted(set(range(33)) - picked, key=lambda n: -float(token_score[n]))
        assert ids[image].tolist() == sorted([*picked, *rest[: 20 - len(picked)]])


@EVERY_BACKEND
@pytest.mark.parametrize("budget", [1, 2, 33])
def test_equal_slots_still_keep_the_whole_budget(backend: str, budget: int) -> None:
    q, k, final_tokens = inputs(7, 33)
    with running(backend):
        _, ids = torch.ops.ocvtp.argmax_gather(
            q[:, :1].expand(-1, 7, -1), k, final_tokens, None, budget
        )
    assert_kept(ids, budget, 33)


def test_gradient_reaches_the_kept_rows_only() -> None:
    q, k, final_tokens = inputs(7, 33, torch.float64)
    final_tokens.requires_grad_()
    tokens, ids = torch.ops.ocvtp.argmax_gather(q, k, final_tokens, None, 9)
    tokens.sum().backward()
    assert final_tokens.grad is not None and not ids.requires_grad
    expected = torch.zeros_like(final_tokens)
    for image in range(3):
        expected[image, ids[image]] = 1
    assert torch.equal(final_tokens.grad, expected)
