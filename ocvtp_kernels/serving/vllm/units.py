"""What Qwen2-VL, Qwen2.5-VL and Qwen3-VL share in vLLM: images of any size, M-RoPE positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import Selector, require_available
from ocvtp_kernels.selectors.oc_pruner import require_fit
from ocvtp_kernels.serving.vllm.mrope import PositionedModel
from ocvtp_kernels.serving.vllm.positions import append_places
from ocvtp_kernels.serving.vllm.processing import PrunedInfo
from ocvtp_kernels.serving.vllm.settings import Settings
from ocvtp_kernels.vlm.columns.encoder import AVAILABLE_FIELDS, UnitEncoder, UnitImages
from ocvtp_kernels.vlm.columns.tower import UnitTower
from ocvtp_kernels.vlm.handle import Handle, Options
from ocvtp_kernels.vlm.intercept import Forward, Intercepts
from ocvtp_kernels.vlm.towers import resolve_reference


class UnitInfo(PrunedInfo):
    """As `PrunedInfo`, of a ``ProcessingInfo`` whose counts ask for the image processor."""

    def count_arguments(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """See `PrunedInfo`."""
        processor = self.get_image_processor()  # type: ignore[attr-defined]
        return {"image_processor": processor, "mm_kwargs": kwargs}


class ServedUnitTower(UnitTower):
    """As `UnitTower`, of an encoder of vLLM."""

    @property
    def width(self) -> int:
        """Channels of a patch's token."""
        return int(self.visual.patch_embed.proj.weight.shape[0])

    def order_of(self, grids: list[list[int]]) -> Tensor | None:
        """As `unit_order`, from the patches of each image: time, height, width."""
        return None


class PrunedUnitModel(PositionedModel):
    """Mixin of a model of M-RoPE positions, before its class."""

    tower_name = "visual"
    media_tokens = ("image_token_id", "video_token_id")
    make_tower: type[ServedUnitTower] = ServedUnitTower
    visual: Any

    def begin_pruning(self, settings: Settings, selector: Selector, model_config: Any) -> int:
        self.begin_positions(settings, model_config)
        # Of vLLM's own way, which makes positions of images and videos otherwise.
        self.is_multimodal_pruning_enabled = False
        tower = self.make_tower(self.visual)
        require_fit(selector, tower.width, one_size=False)
        require_available(selector, AVAILABLE_FIELDS)
        layer = resolve_reference(settings.reference_layer, len(tower.blocks))
        # A side stream is tried on Hugging Face's models alone.
        options = Options(overlap=False)
        self._make_encoder = partial(
            UnitEncoder, self.make_tower, selector, layer=layer, options=options
        )
        return layer

    def get_encoder_cudagraph_config(self) -> Any:
        """None of the encoder, as a graph would not see what is chosen."""
        config = super().get_encoder_cudagraph_config()  # type: ignore[misc]
        return config if self.ocvtp is None else dataclasses.replace(config, modalities=[])

    def count_tokens(self, image_input: Any) -> list[int]:
        unit = self.visual.spatial_merge_size**2
        return [t * h * w // unit for t, h, w in image_input["image_grid_thw"].tolist()]

    def embed_images(self, image_input: Any, images: list[int], budget: int) -> list[Tensor]:
        all_grids = image_input["image_grid_thw"].tolist()
        patches = image_input["pixel_values"].split([t * h * w for t, h, w in all_grids])
        grids = [all_grids[image] for image in images]
        pixels = torch.cat([patches[image] for image in images])
        encoder = self._make_encoder(budget=budget)
        tower = self.make_tower(self.visual)
        units = UnitImages(
            encoder, tower, grids, tower.order_of(grids), pixels.device, Handle().begin()
        )
        intercepts = Intercepts()

        # No hook: blocks that vLLM may compile are called past them.
        def run_block(original: Forward, *args: Any, **kwargs: Any) -> Tensor:
            states: Tensor = original(*args, **kwargs)
            units.start(states)
            return states

        intercepts.replace(tower.blocks[encoder.layer], run_block)
        with intercepts.active():
            features = self.visual(pixels, grid_thw=grids)
        # Behind a token's own channels are DeepStack's.
        own, others = features[:, : self._width], features[:, self._width :]
        kept = units.finish(own)
        if others.shape[1]:
            kept = [torch.cat(each, 1) for each in zip(kept, units.take(others), strict=True)]
        return [
            append_places(rows, ids, grid[2] // tower.merge) if len(rows) < size else rows
            for rows, ids, grid, size in zip(kept, units.ids, grids, units.sizes, strict=True)
        ]

    def count_whole(self, data: Any) -> int:
        patches = int(data["image_grid_thw"].data.prod())
        return patches // int(self.config.vision_config.spatial_merge_size) ** 2
