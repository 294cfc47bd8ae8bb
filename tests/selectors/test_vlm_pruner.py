"""VLM-Pruner's choice of channels."""

from __future__ import annotations

import torch

from ocvtp_kernels.selectors.vlm_pruner import screen_channels


def test_equal_variances_go_to_the_lowest_channel() -> None:
    # Every channel is a permutation of the same values, so only rounding could tell them apart.
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, generator=generator)
    columns = [values[torch.randperm(50, generator=generator)] for _ in range(40)]
    tokens = torch.stack(columns, dim=1)[None]
    assert torch.equal(screen_channels(tokens, 7), tokens[..., :7])
