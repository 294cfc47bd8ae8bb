"""Qwen2.5-VL in vLLM, whose blocks run in the order of windows."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor
from vllm.model_executor.models import qwen2_5_vl as base
from vllm.multimodal import MULTIMODAL_REGISTRY

from ocvtp_kernels.serving.vllm.processing import PrunedProcessor
from ocvtp_kernels.serving.vllm.units import PrunedUnitModel, ServedUnitTower, UnitInfo


class Info(UnitInfo, base.Qwen2_5_VLProcessingInfo):
    """vLLM's, with `UnitInfo`."""


class Processor(PrunedProcessor, base.Qwen2_5_VLMultiModalProcessor):
    """vLLM's, with `PrunedProcessor`."""


class WindowTower(ServedUnitTower):
    """As `ServedUnitTower`, with blocks that attend within windows."""

    def order_of(self, grids: list[list[int]]) -> Tensor:
        orders = [self.visual.get_window_index_thw(*grid)[0] for grid in grids]
        starts = accumulate((len(order) for order in orders[:-1]), initial=0)
        order = torch.cat([order + start for order, start in zip(orders, starts, strict=True)])
        return order.to(self.visual.device)


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=base.Qwen2_5_VLDummyInputsBuilder
)
class OcvtpQwen2_5_VLForConditionalGeneration(
    PrunedUnitModel, base.Qwen2_5_VLForConditionalGeneration
):
    """vLLM's, whose images are at most the budget and whose kept tokens keep their positions."""

    make_tower = WindowTower
