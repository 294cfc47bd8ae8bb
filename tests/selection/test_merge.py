"""Merging on the CPU: its gradient is that of the assignment that the forward pass made."""

from __future__ import annotations

import pytest
import torch

from tests.cases import CPU_WAYS, random_tokens, running


@pytest.mark.parametrize("way", CPU_WAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_gradient_is_the_adjoint_of_what_was_merged(way: str, dtype: torch.dtype) -> None:
    # Alike slots: rounded to bfloat16 the logits of many tie.
    q = (1 + random_tokens(2, 40, 24) / 64).to(dtype)
    k, grad = (random_tokens(2, size, 24, seed=size).to(dtype) for size in (50, 40))
    final_tokens = random_tokens(2, 50, 24, seed=3).to(dtype).requires_grad_()
    with running(way):
        merged, _ = torch.ops.ocvtp.merge(q, k, final_tokens)
        (got,) = torch.autograd.grad(merged, final_tokens, grad)
    # By channels: sum over slots of merged times grad is sum over tokens of final times its own.
    first = (merged.double() * grad.double()).sum(dim=1)
    second = (final_tokens.double() * got.double()).sum(dim=1)
    torch.testing.assert_close(first, second, rtol=0, atol=40 * torch.finfo(dtype).eps)
