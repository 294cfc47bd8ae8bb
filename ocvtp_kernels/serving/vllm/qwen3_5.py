"""Qwen3.5 and its mixture of experts in vLLM."""

from __future__ import annotations

from vllm.model_executor.models import qwen3_5 as base
from vllm.model_executor.models import qwen3_vl
from vllm.multimodal import MULTIMODAL_REGISTRY

from ocvtp_kernels.serving.vllm.processing import PrunedProcessor
from ocvtp_kernels.serving.vllm.units import PrunedUnitModel, UnitInfo


class Info(UnitInfo, base.Qwen3_5ProcessingInfo):
    """vLLM's, with `UnitInfo`."""


class MoeInfo(UnitInfo, base.Qwen3_5MoeProcessingInfo):
    """vLLM's, with `UnitInfo`."""


class Processor(PrunedProcessor, qwen3_vl.Qwen3VLMultiModalProcessor):
    """vLLM's, with `PrunedProcessor`."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder
)
class OcvtpQwen3_5ForConditionalGeneration(PrunedUnitModel, base.Qwen3_5ForConditionalGeneration):
    """vLLM's, whose images are at most the budget and whose kept tokens keep their positions."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=MoeInfo, dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder
)
class OcvtpQwen3_5MoeForConditionalGeneration(
    PrunedUnitModel, base.Qwen3_5MoeForConditionalGeneration
):
    """vLLM's, whose images are at most the budget and whose kept tokens keep their positions."""
