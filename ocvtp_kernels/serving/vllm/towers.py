"""vLLM's CLIP and SigLIP as the towers that `ocvtp_kernels.vlm` selects on.

vLLM builds only the layers that are used, joins their projections, and under tensor parallelism
gives each rank some of the heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import (
    tensor_model_parallel_all_gather,
    tensor_model_parallel_all_reduce,
)

from ocvtp_kernels.vlm.intercept import Intercepts
from ocvtp_kernels.vlm.tower_attention import split_heads
from ocvtp_kernels.vlm.towers import Tower, resolve_reference


class ServedTower(Tower):
    """As `Tower`, of a tower of vLLM."""

    def can_compute_rows(self, reference_layer: int, final_layer: int | Sequence[int]) -> bool:
        """No: vLLM's attention takes all rows."""
        return False

    def _tap(self, intercepts: Intercepts, layer: int) -> ShardedAttention:  # type: ignore[override]
        return ShardedAttention(intercepts, self.layers[layer])


class ShardedAttention:
    """As `LayerAttention`, of a layer whose heads are divided among ranks."""

    def __init__(self, intercepts: Intercepts, layer: Any) -> None:
        self._attention = layer.self_attn
        intercepts.watch(self._attention.qkv_proj, self._store)

    def _store(self, output: Any) -> None:
        self._query, self._key, _ = output[0].chunk(3, dim=-1)

    def received(self, mode: str) -> Tensor:
        """Attention received, ``[B, N]`` with prefix tokens, mean over the heads of all ranks."""
        attention = self._attention
        heads, ranks = attention.num_heads_per_partition, attention.tp_size
        q, k = (split_heads(tokens, heads) for tokens in (self._query, self._key))
        received: Tensor = torch.ops.ocvtp.attention_received(q, k, mode)
        return received if ranks == 1 else tensor_model_parallel_all_reduce(received) / ranks

    @property
    def keys(self) -> Tensor:
        """Keys ``[B, N, D]`` with prefix tokens, heads of all ranks side by side."""
        is_whole = self._attention.tp_size == 1
        key: Tensor = self._key
        return key if is_whole else tensor_model_parallel_all_gather(key.contiguous(), dim=-1)


def final_layers(config: Any) -> int | list[int]:
    """The model's ``vision_feature_layer`` counted from the front, as vLLM leaves out the rest.

    Args:
        config: of the model.
    """
    count = config.vision_config.num_hidden_layers + 1
    layers = config.vision_feature_layer
    return layers % count if isinstance(layers, int) else [layer % count for layer in layers]


def reference_layer(layer: int | None, config: Any, tower: Tower) -> int:
    """The reference layer among those of the whole tower.

    Raises:
        ValueError: there is no such layer, or vLLM leaves it out, as no token is taken behind it.
    """
    layer = resolve_reference(layer, config.vision_config.num_hidden_layers)
    if layer >= len(tower.layers):
        raise ValueError(
            f"reference_layer: expected 0 to {len(tower.layers) - 1}, the layers that vLLM builds, "
            f"got {layer}"
        )
    return layer
