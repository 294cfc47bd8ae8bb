"""LLaVA-NeXT in vLLM: all crops of an image are one sequence, of which some tokens are kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor
from vllm.model_executor.models import llava_next as base
from vllm.multimodal import MULTIMODAL_REGISTRY

from ocvtp_kernels.selectors.interface import Selector
from ocvtp_kernels.serving.vllm.processing import NarrowProcessor, PrunedInfo
from ocvtp_kernels.serving.vllm.towers import (
    PrunedTowerModel,
    ServedTower,
    ServedTowerPruning,
)
from ocvtp_kernels.vlm.handle import Options
from ocvtp_kernels.vlm.llava_next import LlavaNextPlaceholders, LlavaNextPruning, read_size
from ocvtp_kernels.vlm.llava_next.layout import Layout, Layouts, keep_counts


class CropInfo(PrunedInfo):
    """As `PrunedInfo`, of images in crops."""

    make_layouts: type[Layouts] = Layouts

    @cached_property
    def _layouts(self) -> Layouts:
        return self.make_layouts(self.get_hf_config())  # type: ignore[attr-defined]

    def count_kept(self, count: int, budget: int, **image: Any) -> int:
        """What is kept of an image, newlines included; of a whole one vLLM's own count."""
        assert self.ocvtp is not None
        layout = self._layouts.of((image["image_height"], image["image_width"]))
        kept = keep_counts(layout, budget, self.ocvtp.newlines)
        return count if kept.whole else kept.placeholders


class Info(CropInfo, base.LlavaNextProcessingInfo):
    """vLLM's, with `CropInfo`."""

    def get_image_size_with_most_features(self) -> Any:
        """The size of the most crops, though all sizes may keep as many tokens."""
        return base.LlavaNextProcessingInfo(self.ctx).get_image_size_with_most_features()


class CropProcessor(NarrowProcessor):
    """As `NarrowProcessor`, of images in crops."""

    def _fewer_placeholders(
        self, mm_items: Any, placeholders: Callable[[int], list[int]], budget: int
    ) -> Callable[[int], list[int]]:
        def fewer(index: int) -> list[int]:
            size = mm_items["image"].get_image_size(index)
            image = {"image_width": size.width, "image_height": size.height}
            count = self.info.count_kept(self.info.count_unpruned(**image), budget, **image)
            return placeholders(index)[:1] * count

        return fewer


class Processor(CropProcessor, base.LlavaNextMultiModalProcessor):
    """vLLM's, with `CropProcessor`."""


class _Pruning(ServedTowerPruning, LlavaNextPruning):
    pass


class CropModel(PrunedTowerModel):
    """As `PrunedTowerModel`, of images in crops.

    Attributes:
        make_layouts, make_plan, make_crop_pruning: the classes of the family.
    """

    make_layouts: type[Layouts] = Layouts
    make_plan: type[LlavaNextPlaceholders] = LlavaNextPlaceholders
    make_crop_pruning: type[LlavaNextPruning] = _Pruning

    def make_pruning(self, selector: Selector, budget: int, options: Options) -> LlavaNextPruning:
        plan = self.make_plan(self._layouts, budget, options.newlines)
        return self.make_crop_pruning(self, selector, plan, options)

    def _layout(self, image_input: Any, image: int) -> Layout:
        return self._layouts.of(read_size(image_input["image_sizes"][image]))

    @cached_property
    def _layouts(self) -> Layouts:
        return self.make_layouts(self.config)

    def count_tokens(self, image_input: Any) -> list[int]:
        pixels = image_input["pixel_values"]
        patches = ServedTower.of(self.vision_tower).count_patches(pixels[0])
        return [self._layout(image_input, i).num_crops * patches for i in range(len(pixels))]

    def count_kept(self, image_input: Any, image: int, size: int, budget: int) -> int:
        assert self.ocvtp is not None
        layout = self._layout(image_input, image)
        return keep_counts(layout, budget, self.ocvtp.newlines).placeholders

    def count_whole(self, data: Any) -> int:
        return self._layouts.of(read_size(data["image_sizes"].data)).num_packed

    def embed_images(self, image_input: Any, images: list[int], budget: int) -> list[Tensor]:
        # Crops that fill up a batch are left out.
        crops = [
            image_input["pixel_values"][image][: self._layout(image_input, image).num_crops]
            for image in images
        ]
        return self.keep(budget, crops, image_sizes=image_input["image_sizes"][images])


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=base.LlavaDummyInputsBuilder
)
class OcvtpLlavaNextForConditionalGeneration(CropModel, base.LlavaNextForConditionalGeneration):
    """vLLM's, whose images are at most the budget, over all their crops."""
