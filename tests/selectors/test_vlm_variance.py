"""VLM-Pruner's channel variance: torch's own, whatever way it is computed."""

from __future__ import annotations

import pytest
import torch

from ocvtp_kernels.selectors.vlm_pruner import channel_variance, screen_channels
from tests.cases import random_tokens


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 33, 20), (1, 576, 300), (3, 2, 5), (0, 4, 3)])
def test_it_is_torchs_to_the_bit(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    tokens = random_tokens(*shape, dtype=dtype, outliers=True)
    wide = tokens if dtype == torch.float64 else tokens.float()
    assert torch.equal(channel_variance(tokens), wide.var(dim=1))


def test_equal_variances_go_to_the_lowest_channel() -> None:
    # Every channel is a permutation of the same values, so only rounding could tell them apart.
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, generator=generator)
    columns = [values[torch.randperm(50, generator=generator)] for _ in range(40)]
    tokens = torch.stack(columns, dim=1)[None]
    assert torch.equal(screen_channels(tokens, 7), tokens[..., :7])
