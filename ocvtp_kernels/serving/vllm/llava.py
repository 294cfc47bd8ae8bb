"""LLaVA-1.5 in vLLM: only the kept tokens are projected and get placeholders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import llava as base
from vllm.multimodal import MULTIMODAL_REGISTRY

from ocvtp_kernels.selectors.interface import Selector
from ocvtp_kernels.serving.vllm.processing import NarrowProcessor, PrunedInfo
from ocvtp_kernels.serving.vllm.towers import (
    PrunedTowerModel,
    ServedTower,
    ServedTowerPruning,
)
from ocvtp_kernels.vlm.handle import Options
from ocvtp_kernels.vlm.llava import LlavaPruning
from ocvtp_kernels.vlm.placeholders import PlaceholderPruning, count_tokens


class Info(PrunedInfo, base.LlavaProcessingInfo):
    """vLLM's, with `PrunedInfo`."""


class Processor(NarrowProcessor, base.LlavaMultiModalProcessor):
    """vLLM's, with `NarrowProcessor`."""


def _make_info(ctx: Any) -> Any:
    info = base._build_llava_or_pixtral_hf_info(ctx)
    return Info(ctx) if type(info) is base.LlavaProcessingInfo else info


def _make_processor(info: Any, dummy_inputs: Any) -> Any:
    if isinstance(info, Info):
        return Processor(info, dummy_inputs)
    return base._build_llava_or_pixtral_hf_processor(info, dummy_inputs)


class _Pruning(ServedTowerPruning, LlavaPruning):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    _make_processor, info=_make_info, dummy_inputs=base.LlavaDummyInputsBuilder
)
class OcvtpLlavaForConditionalGeneration(PrunedTowerModel, base.LlavaForConditionalGeneration):
    """vLLM's, whose images are ``min(budget, N)`` tokens each."""

    def make_pruning(self, selector: Selector, budget: int, options: Options) -> PlaceholderPruning:
        return _Pruning(self, selector, budget, options)

    def count_tokens(self, image_input: Any) -> list[int]:
        tower, pixels = ServedTower.of(self.vision_tower), image_input["pixel_values"]
        strategy = self.config.vision_feature_select_strategy
        return [count_tokens(tower, pixels, strategy)[1]] * len(pixels)

    def count_whole(self, data: Any) -> int:
        side = self.config.vision_config.image_size
        image = torch.empty(1, 3, side, side, device="meta")
        return self.count_tokens({"pixel_values": image})[0]

    def embed_images(self, image_input: Any, images: list[int], budget: int) -> list[Tensor]:
        return self.keep(budget, image_input["pixel_values"][images])
