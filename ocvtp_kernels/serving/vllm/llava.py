"""LLaVA-1.5 in vLLM: only the kept tokens are projected and get placeholders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, SiglipVisionConfig
from vllm.model_executor.models import llava as base
from vllm.multimodal import MULTIMODAL_REGISTRY

from ocvtp_kernels.selectors.interface import Selector
from ocvtp_kernels.serving.vllm.images import PrunedModel
from ocvtp_kernels.serving.vllm.processing import PrunedInfo, PrunedProcessor
from ocvtp_kernels.serving.vllm.settings import Settings
from ocvtp_kernels.serving.vllm.towers import ServedTower, final_layers, reference_layer
from ocvtp_kernels.vlm.handle import Options
from ocvtp_kernels.vlm.llava import LlavaPruning
from ocvtp_kernels.vlm.placeholders import PlaceholderPruning, as_output
from ocvtp_kernels.vlm.towers import Tower


class Info(PrunedInfo, base.LlavaProcessingInfo):
    """vLLM's, with `PrunedInfo`."""


class Processor(PrunedProcessor, base.LlavaMultiModalProcessor):
    """vLLM's, with `PrunedProcessor`."""


def _make_info(ctx: Any) -> Any:
    info = base._build_llava_or_pixtral_hf_info(ctx)
    return Info(ctx) if type(info) is base.LlavaProcessingInfo else info


def _make_processor(info: Any, dummy_inputs: Any) -> Any:
    if isinstance(info, Info):
        return Processor(info, dummy_inputs)
    return base._build_llava_or_pixtral_hf_processor(info, dummy_inputs)


class PrunedTowerModel(PrunedModel):
    """A model whose tower is a CLIP or a SigLIP, in front of its class."""

    config: Any
    vision_tower: Any

    def make_pruning(self, selector: Selector, budget: int, options: Options) -> PlaceholderPruning:
        """What keeps ``budget`` tokens of each image of a call."""
        raise NotImplementedError

    def begin_pruning(self, settings: Settings, selector: Selector) -> int:
        vision_config = self.config.vision_config
        if not isinstance(vision_config, CLIPVisionConfig | SiglipVisionConfig):
            raise ValueError(
                "model: expected a CLIP or SigLIP tower for an ocvtp setting, "
                f"got {vision_config.model_type}"
            )
        layer = reference_layer(
            settings.reference_layer, self.config, ServedTower.of(self.vision_tower)
        )
        # A side stream is tried on Hugging Face's models alone.
        options = Options(layer, newlines=settings.newlines, overlap=False)
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
        return features


class _LlavaPruning(LlavaPruning):
    def tower(self, inner: Any) -> Tower:
        return ServedTower.of(inner.vision_tower)


@MULTIMODAL_REGISTRY.register_processor(
    _make_processor, info=_make_info, dummy_inputs=base.LlavaDummyInputsBuilder
)
class OcvtpLlavaForConditionalGeneration(PrunedTowerModel, base.LlavaForConditionalGeneration):
    """vLLM's, whose images are ``min(budget, N)`` tokens each."""

    def make_pruning(self, selector: Selector, budget: int, options: Options) -> PlaceholderPruning:
        return _LlavaPruning(self, selector, budget, options)

    def count_tokens(self, image_input: Any) -> list[int]:
        pixels = image_input["pixel_values"]
        tower = ServedTower.of(self.vision_tower)
        dropped = 1 if self.config.vision_feature_select_strategy == "default" else 0
        return [tower.num_prefix + tower.count_patches(pixels) - dropped] * len(pixels)

    def embed_images(self, image_input: Any, images: list[int], budget: int) -> list[Tensor]:
        return self.keep(budget, image_input["pixel_values"][images])
