"""VLM-Pruner's channel variance: torch's own, whatever way it is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ocvtp_kernels.selectors.vlm_pruner import screen_channels
from tests.cases import CPU_WAYS, assert_within_budget, random_tokens, running


@pytest.mark.parametrize("way", CPU_WAYS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(2, 33, 20), (1, 576, 300), (3, 2, 5), (0, 4, 3)])
def test_it_is_torchs_to_the_bit(way: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    tokens = random_tokens(*shape, dtype=dtype, outliers=True)
    with running(way):
        got = torch.ops.ocvtp.channel_variance(tokens)
    assert torch.equal(got, tokens.float().var(dim=1))


@pytest.mark.parametrize("way", CPU_WAYS)
def test_float64_keeps_the_error_budget(way: str) -> None:
    tokens = random_tokens(2, 65, 300, dtype=torch.float64, outliers=True)
    wider = tokens.numpy().astype(np.longdouble).var(axis=1, ddof=1)
    with running(way):
        got = torch.ops.ocvtp.channel_variance(tokens)
    assert_within_budget(got, tokens.var(dim=1), torch.from_numpy(wider.astype(np.float64)))


@pytest.mark.parametrize("way", CPU_WAYS)
def test_one_token_has_no_variance(way: str) -> None:
    with running(way):
        assert torch.ops.ocvtp.channel_variance(random_tokens(2, 1, 3)).isnan().all()


def test_equal_variances_go_to_the_lowest_channel() -> None:
    # Every channel is a permutation of the same values, so only rounding could tell them apart.
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, generator=generator)
    columns = [values[torch.randperm(50, generator=generator)] for _ in range(40)]
    tokens = torch.stack(columns, dim=1)[None]
    assert torch.equal(screen_channels(tokens, 7), tokens[..., :7])
