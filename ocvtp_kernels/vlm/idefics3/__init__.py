"""Idefics3 and SmolVLM: tiles row by row, the whole image last, each behind a tag, which stays.

The frames of SmolVLM's videos are images of one tile, with a budget each.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from ocvtp_kernels.vlm.columns.tiles import (
    TileEncoder,
    attach_to_tiles,
    find_reference,
    find_runs,
)
from ocvtp_kernels.vlm.family import Family, InDecoder, Tiles
from ocvtp_kernels.vlm.handle import CallRecord
from ocvtp_kernels.vlm.image_processors import find_processor_class
from ocvtp_kernels.vlm.towers import Tower, TowerType

if TYPE_CHECKING:
    from ocvtp_kernels.vlm.tower_encoder import TowerEncoder


# A SigLIP whose layers take a mask.
TOWER = TowerType("encoder.layers", False, ("self_attn",), rows=False)


class Idefics3Encoder(TileEncoder):
    """As `TileEncoder`."""

    normed = True

    def final_layer(self, inner: Any, given: dict[str, Any]) -> int:
        return -1

    def take_tiles(self, inner: Any, given: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """See `TileEncoder`; waits for the device, as the model itself does.

        Rows of ``pixel_values`` have tiles of zeros behind their own.
        """
        pixels = given["pixel_values"].to(inner.dtype).flatten(0, 1)
        mask = given.get("pixel_attention_mask")
        mask = None if mask is None else mask.flatten(0, 1)
        is_tile = pixels.flatten(1).any(1)
        if not is_tile.all():
            pixels, mask = pixels[is_tile], None if mask is None else mask[is_tile]
        # Of whole tiles the tower makes its own.
        if mask is None or mask.all():
            return pixels, {}
        high, wide = self.tower(inner).patch_size
        patches = mask.unfold(1, high, high).unfold(2, wide, wide)
        return pixels, {"patch_attention_mask": patches.flatten(3).any(3)}

    def project(self, inner: Any, tokens: Tensor, record: CallRecord) -> Tensor:
        # Every unit as a tile of its own, which the connector's pixel shuffle leaves as it is.
        units = tokens.flatten(0, 1).unflatten(1, (inner.config.scale_factor**2, -1))
        with record.stage("projector", tokens.device):
            return cast(Tensor, inner.connector(units)).view(*tokens.shape[:2], -1)


def describe(inner: Any) -> tuple[Tower, int]:
    """See `Tiles.describe`."""
    return Tower(inner.vision_model, TOWER), inner.config.scale_factor


def count_tiles(tag: list[int], inner: Any, input_ids: Tensor, units: int) -> list[int]:
    """See `Tiles.count_tiles`; the tokens ``tag`` come before the whole image, the last tile."""
    tokens = input_ids.cpu()
    ids: list[list[int]] = tokens.tolist()
    runs = find_runs(tokens == inner.config.image_token_id)
    counts, tiles = list[int](), 0
    for index, (row, start, length) in enumerate(runs):
        if length != units:
            raise ValueError(f"input_ids: expected tiles of {units} placeholders, got {length}")
        tiles += 1
        if ids[row][max(start - len(tag), 0) : start] == tag:
            counts.append(tiles)
            tiles = 0
        elif index + 1 == len(runs) or runs[index + 1].row != row:
            raise ValueError(
                f"input_ids: expected the tiles of row {row} to end with a whole image, which "
                f"the tokens {tag} tell, got {tiles} behind the last one"
            )
    return counts


def read_tiles(processor: Any) -> Tiles:
    """What there is to know of the tiles.

    Raises:
        ValueError: the processor is no such model's, or its tokenizer does not know the tag of
            whole images.
    """
    # Idefics3's processor has one name for it, SmolVLM's another.
    tag = getattr(processor, "global_image_tag", getattr(processor, "global_image_token", None))
    if tag is None:
        raise ValueError(
            "processor: expected an Idefics3Processor or SmolVLMProcessor, whose tags tell where "
            f"an image ends, got {type(processor).__name__}"
        )
    # Of many released models a tag is several tokens.
    text, tokenizer = f"{processor.fake_image_token}{tag}", processor.tokenizer
    tokens = tokenizer(f"{text}{processor.image_token}", add_special_tokens=False)["input_ids"]
    if tokenizer.unk_token_id in tokens:
        raise ValueError(
            f"processor: expected a tokenizer that knows {text!r}, which tells where an image "
            f"ends, got {tokenizer.convert_ids_to_tokens(tokens)}"
        )
    return Tiles(describe, partial(count_tiles, tokens[:-1]))


def open_photos(inner: Any, processor: Any, name: str, reference_layer: int | None) -> TowerEncoder:
    """See `OpenPhotos`; of a photo the whole one alone."""
    from ocvtp_kernels.vlm.tower_encoder import PhotoUnits, TowerEncoder

    tower, merge = describe(inner)
    units = PhotoUnits(merge, True, True, {"do_image_splitting": False})
    if processor is None:
        side = max(tower.image_size)
        make = find_processor_class("Idefics3ImageProcessor")
        processor = make(max_image_size={"longest_edge": side})
    return TowerEncoder(tower, processor, name, reference_layer, -1, units)


FAMILY = Family(
    "Idefics3, SmolVLM",
    ("idefics3", "smolvlm"),
    partial(attach_to_tiles, read_tiles, Idefics3Encoder),
    in_decoder=InDecoder(partial(find_reference, describe), read_tiles=read_tiles),
    open_photos=open_photos,
)
