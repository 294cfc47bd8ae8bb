"""InternVL: an image is its tiles and, of several, a small whole one; units by pixel shuffle.

The placeholders of an image are one run. The frames of a video are images like others.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ocvtp_kernels.selectors.interface import Selector
from ocvtp_kernels.vlm.columns.tiles import (
    TileEncoder,
    attach_to_tiles,
    find_reference,
    find_runs,
)
from ocvtp_kernels.vlm.family import Family, InDecoder, Tiles
from ocvtp_kernels.vlm.handle import Options
from ocvtp_kernels.vlm.image_processors import find_processor_class
from ocvtp_kernels.vlm.towers import Tower, TowerType

if TYPE_CHECKING:
    from ocvtp_kernels.vlm.tower_encoder import TowerEncoder


TOWER = TowerType("encoder.layer", True, ("attention",), rows=False)


class InternVLEncoder(TileEncoder):
    """As `TileEncoder`.

    Raises:
        ValueError: the model takes the CLS token.
    """

    def __init__(
        self, tiles: Tiles, inner: Any, selector: Selector, budget: int, options: Options
    ) -> None:
        strategy = inner.config.vision_feature_select_strategy
        if strategy != "default":
            raise ValueError(
                "vision_feature_select_strategy: expected 'default', which leaves out the CLS "
                f"token, got {strategy!r}"
            )
        # The model's own rule: of the last layer it takes the tower's output.
        self.normed = inner.config.vision_feature_layer == -1
        super().__init__(tiles, inner, selector, budget, options)

    def final_layer(self, inner: Any, given: dict[str, Any]) -> int:
        layer: int = inner.config.vision_feature_layer
        return layer


def describe(inner: Any) -> tuple[Tower, int]:
    """See `Tiles.describe`."""
    return Tower(inner.vision_tower, TOWER), round(1 / inner.config.downsample_ratio)


def count_tiles(inner: Any, input_ids: Tensor, units: int) -> list[int]:
    """See `Tiles.count_tiles`."""
    lengths = [run.length for run in find_runs(input_ids == inner.config.image_token_id)]
    for length in lengths:
        if length % units:
            raise ValueError(
                f"input_ids: expected images of whole tiles of {units} placeholders, got {length}"
            )
    return [length // units for length in lengths]


def read_tiles(_processor: Any) -> Tiles:
    """What there is to know of the tiles."""
    return Tiles(describe, count_tiles)


def open_photos(inner: Any, processor: Any, name: str, reference_layer: int | None) -> TowerEncoder:
    """See `OpenPhotos`; of a photo the whole one alone."""
    from ocvtp_kernels.vlm.tower_encoder import PhotoUnits, TowerEncoder

    tower, merge = describe(inner)
    final_layer = inner.config.vision_feature_layer
    units = PhotoUnits(merge, True, final_layer == -1, {"crop_to_patches": False})
    if processor is None:
        high, wide = tower.image_size
        processor = find_processor_class("GotOcr2ImageProcessor")(
            size={"height": high, "width": wide}
        )
    return TowerEncoder(tower, processor, name, reference_layer, final_layer, units)


FAMILY = Family(
    "InternVL",
    ("internvl",),
    partial(attach_to_tiles, read_tiles, InternVLEncoder),
    in_decoder=InDecoder(partial(find_reference, describe), read_tiles=read_tiles),
    open_photos=open_photos,
)
