"""Qwen3-VL and its mixture of experts: DeepStack features go along with the kept units.

The mergers of some blocks make features of their output, which the language model adds to the
hidden states of the image's columns behind its first layers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels.vlm.columns.photos import open_units
from ocvtp_kernels.vlm.columns.pruning import attach_to_columns, find_reference, read_grids
from ocvtp_kernels.vlm.columns.tower import Units, UnitTower
from ocvtp_kernels.vlm.family import Family, InDecoder
from ocvtp_kernels.vlm.intercept import Forward, Intercepts


class DeepTower(UnitTower):
    """As `UnitTower`, with interpolated positions and DeepStack mergers."""

    def arguments(self, grid: Tensor, device: torch.device) -> dict[str, Tensor]:
        from transformers.vision_utils import get_vision_interpolation_indices_and_weights

        visual = self.visual
        indices, weights = get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=self.merge,
        )
        interpolation = {
            "interp_indices": indices.to(device),
            "interp_weights": weights.to(device),
        }
        return super().arguments(grid, device) | interpolation

    def finish_units(
        self, intercepts: Intercepts, choose: Callable[[], Units], lengths: list[int], layer: int
    ) -> list[Tensor]:
        def run_merger(original: Forward, hidden_states: Tensor) -> Any:
            return original(self.take_units(hidden_states, choose(), lengths))

        visual = self.visual
        pairs = zip(visual.deepstack_visual_indexes, visual.deepstack_merger_list, strict=True)
        for block, merger in pairs:
            # Those before have run when the units are chosen.
            if block > layer:
                intercepts.replace(merger, run_merger)
        return super().finish_units(intercepts, choose, lengths, layer)

    def extra_outputs(self, output: Any, take: Callable[[Tensor], list[Tensor]]) -> dict[str, Any]:
        return {"deepstack_features": [take(features) for features in output.deepstack_features]}


FAMILY = Family(
    "Qwen3-VL",
    ("qwen3_vl", "qwen3_vl_moe"),
    partial(attach_to_columns, DeepTower),
    in_decoder=InDecoder(partial(find_reference, DeepTower), read_grids),
    open_photos=partial(open_units, DeepTower, "Qwen2VLImageProcessor"),
)
