"""The channel variance on the CPU: torch's own, on every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.cases import CPU_BACKENDS, assert_within_budget, random_tokens, running
from tests.ops.raw_calls import B, D, N, RawCall


def arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    return (random_tokens(batch, 31, 10, dtype=dtype)[:, 1:],)


RAW_CALLS = {
    "channel_variance": RawCall(
        {"tokens": random_tokens(B, N, D)}, {"tokens": ["size *", "dtype taken"]}, cpu_only=True
    ),
}


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(2, 33, 20), (1, 576, 300), (3, 2, 5), (0, 4, 3)])
def test_it_is_torchs_to_the_bit(
    backend: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    tokens = random_tokens(*shape, dtype=dtype, outliers=True)
    with running(backend):
        got = torch.ops.ocvtp.channel_variance(tokens)
    assert torch.equal(got, tokens.float().var(dim=1))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_float64_keeps_the_error_budget(backend: str) -> None:
    tokens = random_tokens(2, 65, 300, dtype=torch.float64, outliers=True)
    wider = tokens.numpy().astype(np.longdouble).var(axis=1, ddof=1)
    with running(backend):
        got = torch.ops.ocvtp.channel_variance(tokens)
    assert_within_budget(got, tokens.var(dim=1), torch.from_numpy(wider.astype(np.float64)))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_one_token_has_no_variance(backend: str) -> None:
    with running(backend):
        assert torch.ops.ocvtp.channel_variance(random_tokens(2, 1, 3)).isnan().all()
