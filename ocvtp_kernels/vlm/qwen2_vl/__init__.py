"""Qwen2-VL: every block attends to whole images."""

from __future__ import annotations

from functools import partial

from ocvtp_kernels.vlm.columns.photos import open_units
from ocvtp_kernels.vlm.columns.pruning import attach_to_columns, find_reference, read_grids
from ocvtp_kernels.vlm.columns.tower import UnitTower
from ocvtp_kernels.vlm.family import Family, InDecoder

FAMILY = Family(
    "Qwen2-VL",
    ("qwen2_vl",),
    partial(attach_to_columns, UnitTower),
    in_decoder=InDecoder(partial(find_reference, UnitTower), read_grids),
    open_photos=partial(open_units, UnitTower, "Qwen2VLImageProcessor"),
)
