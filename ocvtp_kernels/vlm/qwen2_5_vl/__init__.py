"""Qwen2.5-VL: most blocks attend within windows, in whose order all blocks run."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ocvtp_kernels.vlm.columns.photos import open_units
from ocvtp_kernels.vlm.columns.pruning import attach_to_columns, find_reference, read_grids
from ocvtp_kernels.vlm.columns.tower import UnitTower
from ocvtp_kernels.vlm.family import Family, InDecoder


class WindowTower(UnitTower):
    """As `UnitTower`, with blocks that attend within windows."""

    def arguments(self, grid: Tensor, device: torch.device) -> dict[str, Tensor]:
        from transformers.vision_utils import get_vision_window_index

        visual = self.visual
        order, windows = get_vision_window_index(
            grid,
            spatial_merge_size=self.merge,
            window_size=visual.window_size,
            patch_size=visual.patch_size,
        )
        in_windows = {
            "window_index": order.to(device),
            "cu_window_seqlens": self.place(windows, device),
        }
        return super().arguments(grid, device) | in_windows

    def unit_order(self, arguments: dict[str, Tensor]) -> Tensor | None:
        return arguments["window_index"]

    def attends_whole(self, block: int) -> bool:
        return block in self.visual.fullatt_block_indexes


FAMILY = Family(
    "Qwen2.5-VL",
    ("qwen2_5_vl",),
    partial(attach_to_columns, WindowTower),
    in_decoder=InDecoder(partial(find_reference, WindowTower), read_grids),
    open_photos=partial(open_units, WindowTower, "Qwen2VLImageProcessor"),
)
