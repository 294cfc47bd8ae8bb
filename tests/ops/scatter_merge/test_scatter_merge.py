"""Tokens without an assignment are in no sum and have no gradient, on every backend."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from ocvtp_kernels import use_backend
from tests.cases import CPU_BACKENDS, DEVICE, random_tokens, running
from tests.ops.raw_calls import B, D, N, RawCall, ids

NONE = torch.tensor([[1, -1, 0, 3, 2**40, -(2**63), 2, 2**63 - 1]])


def arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    tokens = random_tokens(batch, 31, 10, dtype=dtype)[:, 1:]
    assignment = torch.randint(-1, 7, (batch, 30), generator=torch.Generator().manual_seed(7))
    return tokens, assignment, random_tokens(batch, 30, seed=8, dtype=dtype), 7


RAW_CALLS = {
    "scatter_merge": RawCall(
        {
            "tokens": random_tokens(B, N, D),
            "owner": ids(B, N),
            "weight": random_tokens(B, N),
            "num_owners": 5,
        },
        {"tokens": ["size 2 *"]},
        {"num_owners": (0, None)},
        measures=("tokens",),
        cpu_only=True,
    ),
}


@pytest.mark.parametrize(
    "backend", [*CPU_BACKENDS, "chosen", pytest.param("triton", marks=pytest.mark.interpreter)]
)
@pytest.mark.parametrize("infinite", [False, True])
def test_tokens_without_an_assignment_have_no_gradient(backend: str, infinite: bool) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    device = DEVICE if backend in ("chosen", "triton") else "cpu"
    tokens = random_tokens(1, 8, 5).to(device).requires_grad_()
    weight, assignment = random_tokens(1, 8, seed=1).to(device), NONE.to(device)
    grad = random_tokens(1, 3, 5, seed=2).to(device)
    if infinite:
        grad[:, 0] = torch.inf
    contexts = {"chosen": nullcontext, "triton": lambda: use_backend("triton")}
    with contexts.get(backend, lambda: running(backend))():
        sums, mass = torch.ops.ocvtp.scatter_merge(tokens, assignment, weight, 3)
        sums.backward(grad)
    expected = torch.zeros(1, 8, 5)
    for token, row in ((0, 1), (2, 0), (6, 2)):
        expected[0, token] = weight[0, token] * grad[0, row]
        torch.testing.assert_close(sums[0, row], weight[0, token] * tokens[0, token])
        torch.testing.assert_close(mass[0, row], weight[0, token])
    torch.testing.assert_close(tokens.grad.cpu(), expected)
