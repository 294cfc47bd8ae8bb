"""Attention and keys of a layer whose heads are divided among ranks, ranks played one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ocvtp_kernels.serving.vllm import towers
from ocvtp_kernels.serving.vllm.towers import ShardedAttention
from ocvtp_kernels.vlm.intercept import Intercepts

HEADS, CHANNELS, TOKENS = 6, 8, 10


class Projections(nn.Module):
    """Gives queries, keys and values as vLLM's joined projection does, beside its bias."""

    def __init__(self, parts: list[Tensor]) -> None:
        super().__init__()
        self.output = torch.cat([part.flatten(2) for part in parts], dim=-1)

    def forward(self) -> tuple[Tensor, None]:
        return self.output, None


class Attention(nn.Module):
    def __init__(self, parts: list[Tensor], ranks: int) -> None:
        super().__init__()
        self.qkv_proj = Projections(parts)
        self.num_heads_per_partition, self.tp_size = parts[0].shape[2], ranks


def watch(parts: list[Tensor], ranks: int) -> ShardedAttention:
    """Of queries, keys and values ``[B, N, H, d]`` of a rank, once its projection has run."""
    layer: Any = nn.Module()
    layer.self_attn = Attention(parts, ranks)
    intercepts = Intercepts()
    attention = ShardedAttention(intercepts, layer)
    with intercepts.active():
        layer.self_attn.qkv_proj()
    return attention


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("mode", ["meanq", "cls"])
def test_ranks_together_see_all_heads(
    ranks: int, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    parts = [3 * torch.randn(2, TOKENS, HEADS, CHANNELS) for _ in range(3)]
    whole = watch(parts, 1)
    shards = [
        watch([part.chunk(ranks, dim=2)[rank] for part in parts], ranks) for rank in range(ranks)
    ]
    own: list[Tensor] = []
    monkeypatch.setattr(towers, "tensor_model_parallel_all_reduce", lambda x: own.append(x) or x)
    for shard in shards:
        shard.received(mode)
    monkeypatch.setattr(towers, "tensor_model_parallel_all_reduce", lambda x: sum(own))
    gathered = torch.cat([shard._key for shard in shards], dim=-1)
    monkeypatch.setattr(towers, "tensor_model_parallel_all_gather", lambda x, dim: gathered)
    for shard in shards:
        torch.testing.assert_close(shard.received(mode), whole.received(mode))
        assert torch.equal(shard.keys, whole.keys)
    assert not torch.allclose(own[0], whole.received(mode), rtol=1e-2)
