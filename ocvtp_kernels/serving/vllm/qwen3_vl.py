"""Qwen3-VL and its mixture of experts in vLLM.

DeepStack features, which lie behind a token's own channels, go along.
"""

from __future__ import annotations

from vllm.model_executor.models import qwen3_vl as base
from vllm.model_executor.models import qwen3_vl_moe as moe
from vllm.multimodal import MULTIMODAL_REGISTRY

from ocvtp_kernels.serving.vllm.processing import PrunedProcessor
from ocvtp_kernels.serving.vllm.units import PrunedUnitModel, UnitInfo


class Info(UnitInfo, base.Qwen3VLProcessingInfo):
    """vLLM's, with `UnitInfo`."""


class MoeInfo(UnitInfo, moe.Qwen3VLMoeProcessingInfo):
    """vLLM's, with `UnitInfo`."""


class Processor(PrunedProcessor, base.Qwen3VLMultiModalProcessor):
    """vLLM's, with `PrunedProcessor`."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=base.Qwen3VLDummyInputsBuilder
)
class OcvtpQwen3VLForConditionalGeneration(PrunedUnitModel, base.Qwen3VLForConditionalGeneration):
    """vLLM's, whose images are at most the budget and whose kept tokens keep their positions."""


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=MoeInfo, dummy_inputs=base.Qwen3VLDummyInputsBuilder
)
class OcvtpQwen3VLMoeForConditionalGeneration(
    PrunedUnitModel, moe.Qwen3VLMoeForConditionalGeneration
):
    """vLLM's, whose images are at most the budget and whose kept tokens keep their positions."""
