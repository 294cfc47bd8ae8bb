"""Qwen2-VL in vLLM."""

from __future__ import annotations

from vllm.model_executor.models import qwen2_vl as base
from vllm.multimodal import MULTIMODAL_REGISTRY

from ocvtp_kernels.serving.vllm.processing import PrunedProcessor
from ocvtp_kernels.serving.vllm.units import PrunedUnitModel, UnitInfo


class Info(UnitInfo, base.Qwen2VLProcessingInfo):
    """vLLM's, with `UnitInfo`."""


class Processor(PrunedProcessor, base.Qwen2VLMultiModalProcessor):
    """vLLM's, with `PrunedProcessor`."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=base.Qwen2VLDummyInputsBuilder
)
class OcvtpQwen2VLForConditionalGeneration(PrunedUnitModel, base.Qwen2VLForConditionalGeneration):
    """vLLM's, whose images are at most the budget and whose kept tokens keep their positions."""
