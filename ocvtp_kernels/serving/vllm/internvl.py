"""InternVL in vLLM: all tiles of an image are one sequence, of which some tokens are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import interns1 as base
from vllm.multimodal import MULTIMODAL_REGISTRY

from ocvtp_kernels.selectors.interface import Selector
from ocvtp_kernels.serving.vllm.mrope import NarrowModel, PositionedModel
from ocvtp_kernels.serving.vllm.positions import append_places
from ocvtp_kernels.serving.vllm.processing import NarrowProcessor, PrunedInfo
from ocvtp_kernels.serving.vllm.settings import Settings
from ocvtp_kernels.vlm.handle import Handle
from ocvtp_kernels.vlm.internvl import InternVLEncoder, read_tiles


class Info(PrunedInfo, base.InternS1ProcessingInfo):
    """vLLM's, with `PrunedInfo`."""

    def count_arguments(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """See `PrunedInfo`."""
        return {"processor": self.get_hf_processor(), "mm_kwargs": kwargs}

    def get_image_size_with_most_features(self) -> Any:
        """The size of the most tiles, though all sizes may keep as many tokens."""
        return base.InternS1ProcessingInfo(self.ctx).get_image_size_with_most_features()

    def count_videos(self, seq_len: int, mm_counts: Mapping[str, int]) -> dict[str, int]:
        """See `PrunedInfo`; a frame is one tile."""
        frames = self.get_num_frames_with_most_features(seq_len, mm_counts)
        return {"video": frames * self.get_hf_processor().image_seq_length}


class Processor(NarrowProcessor, base.InternS1MultiModalProcessor):
    """vLLM's, with `NarrowProcessor`."""

    def _fewer_placeholders(
        self, mm_items: Any, placeholders: Callable[[int], Any], budget: int
    ) -> Callable[[int], Any]:
        def fewer(index: int) -> Any:
            details = placeholders(index)
            start, *image, end = details.full
            return dataclasses.replace(details, full=[start, *image[:budget], end])

        return fewer


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=base.InternS1DummyInputsBuilder
)
class OcvtpInternVLForConditionalGeneration(
    PositionedModel, NarrowModel, base.InternS1ForConditionalGeneration
):
    """vLLM's, whose images are at most the budget, over all their tiles; videos are whole."""

    tower_name = "vision_tower"
    remedy = " without ocvtp.positions='consecutive'"

    def begin_pruning(self, settings: Settings, selector: Selector, model_config: Any) -> int:
        if self.config.vision_feature_layer != -1:
            raise ValueError(
                "vision_feature_layer: expected -1, the tower's output, which vLLM takes, "
                f"got {self.config.vision_feature_layer}"
            )
        options = self.begin_narrow(settings, model_config, settings.reference_layer)
        self._make_encoder = partial(
            InternVLEncoder, read_tiles(None), selector=selector, options=options
        )
        # Which the config does not tell.
        info = MULTIMODAL_REGISTRY.get_processing_info(model_config)
        token = info.get_hf_processor().video_token
        self._video_token: int = info.get_tokenizer().convert_tokens_to_ids(token)
        return self._make_encoder(inner=self, budget=settings.budget).reference_layer

    def media_ids(self) -> list[int]:
        return [self.config.image_token_id, self._video_token]

    def count_tokens(self, image_input: Any) -> list[int]:
        return [int(tiles) * self.num_image_token for tiles in image_input["num_patches"]]

    def count_whole(self, data: Any) -> int:
        return int(data["image_num_patches"].data) * self.num_image_token

    def embed_images(self, image_input: Any, images: list[int], budget: int) -> list[Tensor]:
        counts = [int(tiles) for tiles in image_input["num_patches"]]
        all_pixels = image_input["pixel_values"].split(counts)
        pixels = torch.cat([all_pixels[image] for image in images])
        tiles, units = [counts[image] for image in images], self.num_image_token
        encoder = self._make_encoder(inner=self, budget=budget)
        ids, features = encoder.encode(self, pixels, tiles, Handle().begin())
        if not self.keeps_positions:
            return features
        sizes = [count * units for count in tiles]
        return [
            append_places(image, kept, columns=1) if len(kept) < size else image
            for image, kept, size in zip(features, ids, sizes, strict=True)
        ]
