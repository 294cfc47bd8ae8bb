"""LLaVA-OneVision in vLLM: as LLaVA-NeXT; an image has its tiles, however many the prompt has."""

from __future__ import annotations

from collections.abc import Mapping

from vllm.model_executor.models import llava_onevision as base
from vllm.multimodal import MULTIMODAL_REGISTRY

from ocvtp_kernels.selectors.interface import Selector
from ocvtp_kernels.serving.vllm.llava_next import CropInfo, CropModel, CropProcessor
from ocvtp_kernels.serving.vllm.settings import Settings
from ocvtp_kernels.serving.vllm.towers import ServedTowerPruning
from ocvtp_kernels.vlm.llava_onevision import OnevisionPlaceholders, OnevisionPruning
from ocvtp_kernels.vlm.llava_onevision.layout import OnevisionLayouts

LIMIT = "anyres_max_9"  # which vLLM takes whatever the config says


class Info(CropInfo, base.LlavaOnevisionProcessingInfo):
    """vLLM's, with `CropInfo`."""

    make_layouts = OnevisionLayouts

    def count_videos(self, seq_len: int, mm_counts: Mapping[str, int]) -> dict[str, int]:
        """See `PrunedInfo`."""
        return {"video": self.get_max_video_tokens(seq_len, mm_counts)}


class Processor(CropProcessor, base.LlavaOnevisionMultiModalProcessor):
    """vLLM's, with `CropProcessor`."""


class _Pruning(ServedTowerPruning, OnevisionPruning):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=base.LlavaOnevisionDummyInputsBuilder
)
class OcvtpLlavaOnevisionForConditionalGeneration(
    CropModel, base.LlavaOnevisionForConditionalGeneration
):
    """vLLM's, whose images are at most the budget, over all their crops; videos are whole."""

    media_tokens = ("image_token_id", "video_token_id")
    make_layouts = OnevisionLayouts
    make_plan = OnevisionPlaceholders
    make_crop_pruning = _Pruning

    def begin_pruning(self, settings: Settings, selector: Selector, model_config: object) -> int:
        if self.config.vision_aspect_ratio != LIMIT:
            raise ValueError(
                f"vision_aspect_ratio: expected {LIMIT!r}, which vLLM takes, "
                f"got {self.config.vision_aspect_ratio!r}"
            )
        return super().begin_pruning(settings, selector, model_config)
