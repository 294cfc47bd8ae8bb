"""Qwen3.5 and its mixture of experts: the encoder of Qwen3-VL without DeepStack.

Most layers of its language model are linear attention, which keeps a state instead of keys.
"""

from __future__ import annotations

from functools import partial

from ocvtp_kernels.vlm.columns.photos import open_units
from ocvtp_kernels.vlm.columns.pruning import attach_to_columns
from ocvtp_kernels.vlm.columns.tower import UnitTower
from ocvtp_kernels.vlm.family import Family
from ocvtp_kernels.vlm.qwen3_vl import DeepTower


class InterpolatedTower(DeepTower):
    """As `DeepTower`, with the one merger of `UnitTower`."""

    finish_units = UnitTower.finish_units
    extra_outputs = UnitTower.extra_outputs


FAMILY = Family(
    "Qwen3.5",
    ("qwen3_5", "qwen3_5_moe"),
    partial(attach_to_columns, InterpolatedTower),
    no_decoder=(
        "most of its layers are linear attention, which keeps a state and not the keys of tokens"
    ),
    open_photos=partial(open_units, InterpolatedTower, "Qwen2VLImageProcessor"),
)
