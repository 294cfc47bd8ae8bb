"""vLLM's CLIP and SigLIP as the towers that `ocvtp_kernels.vlm` selects on, and models of them.

vLLM builds only the layers that are used, joins their projections, and under tensor parallelism
gives each rank some of the heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, SiglipVisionConfig
from vllm.distributed import (
    tensor_model_parallel_all_gather,
    tensor_model_parallel_all_reduce,
)

from ocvtp_kernels.selectors.interface import Selector
from ocvtp_kernels.serving.vllm.mrope import NarrowModel, PositionedModel
from ocvtp_kernels.serving.vllm.positions import append_places
from ocvtp_kernels.serving.vllm.settings import Settings
from ocvtp_kernels.vlm.handle import Options
from ocvtp_kernels.vlm.intercept import Intercepts
from ocvtp_kernels.vlm.placeholders import PlaceholderPruning, as_output
from ocvtp_kernels.vlm.positions import read_places
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


class ServedTowerPruning(PlaceholderPruning):
    """Mixin of a pruning whose tower is vLLM's, before its class."""

    def tower(self, inner: Any) -> Tower:
        """The vision tower of a model."""
        return ServedTower.of(inner.vision_tower)

    def decide_positions(self, inner: Any) -> bool:
        """As the options say: which can be is known before the model is built."""
        return self.options.positions == "original"


class PrunedTowerModel(PositionedModel, NarrowModel):
    """Mixin of a model whose tower is a CLIP or a SigLIP, before its class."""

    tower_name = "vision_tower"
    remedy = " without ocvtp.positions='consecutive'"
    vision_tower: Any

    def make_pruning(self, selector: Selector, budget: int, options: Options) -> PlaceholderPruning:
        """What keeps ``budget`` tokens of each image of a call."""
        raise NotImplementedError

    def begin_pruning(self, settings: Settings, selector: Selector, model_config: Any) -> int:
        vision_config = self.config.vision_config
        if not isinstance(vision_config, CLIPVisionConfig | SiglipVisionConfig):
            raise ValueError(
                "model: expected a CLIP or SigLIP tower for an ocvtp setting, "
                f"got {vision_config.model_type}"
            )
        layer = reference_layer(
            settings.reference_layer, self.config, ServedTower.of(self.vision_tower)
        )
        options = self.begin_narrow(settings, model_config, layer)
        self._selector, self._options = selector, options
        self._prunings = {settings.budget: self.make_pruning(selector, settings.budget, options)}
        return layer

    def pruning_of(self, budget: int) -> PlaceholderPruning:
        """The pruning of a budget."""
        if budget not in self._prunings:
            self._prunings[budget] = self.make_pruning(self._selector, budget, self._options)
        return self._prunings[budget]

    def keep(self, budget: int, pixels: Tensor | list[Tensor], **given: Any) -> list[Tensor]:
        """The kept tokens of each image.

        Args:
            budget: of each image.
            pixels: of the images, as vLLM's own method takes them.
            given: what else it takes.
        """

        def embed_unpruned(**_given: Any) -> Any:
            return as_output(list(self.embed_unpruned(pixel_values=pixels, **given)), True)

        call = given | {
            "pixel_values": pixels if isinstance(pixels, Tensor) else torch.cat(pixels),
            "vision_feature_layer": final_layers(self.config),
        }
        output = self.pruning_of(budget).get_image_features(embed_unpruned, self, call)
        features: list[Tensor] = output.pooler_output
        if not self.keeps_positions:
            return features
        return [
            append_places(image, kept, columns=1) if len(kept) < whole else image
            for image, (kept, whole) in zip(features, read_places(features), strict=True)
        ]


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
    built = len(tower.layers)
    layer = resolve_reference(layer, config.vision_config.num_hidden_layers, built)
    if layer >= built:
        raise ValueError(
            f"reference_layer: expected 0 to {built - 1}, the layers that vLLM builds, got {layer}"
        )
    return layer
