"""What Qwen2-VL, Qwen2.5-VL and Qwen3-VL share in vLLM: images of any size, M-RoPE positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import Selector, require_available
from ocvtp_kernels.selectors.oc_pruner import require_width
from ocvtp_kernels.serving.vllm.model import PrunedModel
from ocvtp_kernels.serving.vllm.positions import (
    NUM_DIGITS,
    Span,
    append_places,
    expand_prompt,
    place_tokens,
)
from ocvtp_kernels.serving.vllm.processing import PrunedInfo
from ocvtp_kernels.serving.vllm.settings import Settings
from ocvtp_kernels.vlm.columns.encoder import AVAILABLE_FIELDS, UnitEncoder, UnitImages
from ocvtp_kernels.vlm.columns.tower import UnitTower
from ocvtp_kernels.vlm.handle import Handle, Options
from ocvtp_kernels.vlm.intercept import Forward, Intercepts
from ocvtp_kernels.vlm.towers import resolve_reference


class UnitInfo(PrunedInfo):
    """As `PrunedInfo`, of a ``ProcessingInfo`` whose counts ask for the image processor."""

    @property
    def count_arguments(self) -> dict[str, Any]:
        """What counts take beside the size of an image."""
        processor = self.get_image_processor()  # type: ignore[attr-defined]
        return {"image_processor": processor, "mm_kwargs": {}}


class ServedUnitTower(UnitTower):
    """As `UnitTower`, of an encoder of vLLM."""

    @property
    def width(self) -> int:
        """Channels of a patch's token."""
        return int(self.visual.patch_embed.proj.weight.shape[0])

    def order_of(self, grids: list[list[int]]) -> Tensor | None:
        """As `unit_order`, from the patches of each image: time, height, width."""
        return None


class PrunedUnitModel(PrunedModel):
    """Mixin of a model of M-RoPE positions, before its class."""

    tower_name = "visual"
    make_tower: type[ServedUnitTower] = ServedUnitTower
    config: Any
    visual: Any

    def unsupported(self, vllm_config: Any) -> dict[str, bool]:
        # A draft model, and later stages of a pipeline, are not told where kept tokens stand.
        return super().unsupported(vllm_config) | {
            "speculative_config": vllm_config.speculative_config is not None,
            "pipeline_parallel_size": vllm_config.parallel_config.pipeline_parallel_size > 1,
        }

    def prepare(self, vllm_config: Any) -> None:
        # vLLM then asks for positions again once images are encoded, and makes room for positions
        # behind the end of a pruned prompt. No video is pruned: there is no rate.
        config = vllm_config.model_config.multimodal_config
        object.__setattr__(config, "is_multimodal_pruning_enabled", _always)

    def begin_pruning(self, settings: Settings, selector: Selector) -> int:
        # Of vLLM's own way, which makes positions of images and videos otherwise.
        self.is_multimodal_pruning_enabled = False
        self.supports_multimodal_pruning = True
        tower = self.make_tower(self.visual)
        require_width(selector, tower.width)
        require_available(selector, AVAILABLE_FIELDS)
        self._width = self.config.get_text_config().hidden_size
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

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[Tensor, int]:
        """As vLLM's own, of the prompt with all tokens of its images."""
        if self.ocvtp is None:
            return super().get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc]
        features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        whole = expand_prompt(input_tokens, [self._span(feature) for feature in features])
        moved = [
            dataclasses.replace(
                feature, mm_position=dataclasses.replace(feature.mm_position, offset=offset)
            )
            for feature, offset in zip(features, whole.offsets, strict=True)
        ]
        positions, _ = super().get_mrope_input_positions(whole.tokens, moved)  # type: ignore[misc]
        kept = positions[:, whole.columns]
        # vLLM hands this tensor to `recompute_mrope_positions`, which no longer knows how far an
        # image reaches that no text follows, and need not read positions to know it.
        kept.following = int(positions.max()) + 1
        return kept, kept.following - len(input_tokens)

    def _span(self, feature: Any) -> Span:
        offset, length = feature.mm_position.offset, feature.mm_position.length
        if feature.modality != "image":
            return Span(offset, length, length)
        patches = int(feature.data["image_grid_thw"].data.prod())
        return Span(offset, length, patches // self.config.vision_config.spatial_merge_size**2)

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """The embeddings without places, and the positions with those of kept tokens.

        Args:
            input_ids: of the whole prompt, L of them.
            multimodal_embeddings: of the images and videos, or parts of them, in this step.
            mrope_positions: ``[3, L]``.
            num_computed_tokens: of the prompt, before this step.

        Returns:
            the embeddings, the positions, and what is added to an index behind the prompt to make
            it a position.
        """
        if self.ocvtp is None:
            return super().recompute_mrope_positions(  # type: ignore[misc]
                input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens
            )
        following = getattr(mrope_positions, "following", None)
        if following is not None and not multimodal_embeddings:
            # Of every answer, at every token of it.
            return [], mrope_positions, following - len(input_ids)
        positions = mrope_positions.clone()
        ids = torch.as_tensor(input_ids, device=positions.device)
        is_media = (ids == self.config.image_token_id) | (ids == self.config.video_token_id)
        columns = is_media[num_computed_tokens:].nonzero().flatten() + num_computed_tokens
        embeddings, done = [], 0
        for features in multimodal_embeddings:
            end = done + len(features)
            if features.shape[1] % self._width == NUM_DIGITS:
                place_tokens(positions, columns[done:end], features[:, -NUM_DIGITS:])
                features = features[:, :-NUM_DIGITS]
            embeddings.append(features)
            done = end
        if following is None:
            following = int(positions.max()) + 1
        return embeddings, positions, following - len(ids)


def _always() -> bool:
    return True
