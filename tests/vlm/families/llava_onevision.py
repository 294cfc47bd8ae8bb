"""LLaVA-OneVision on a SigLIP tower: as LLaVA-NeXT, but the grids of large photos are interpolated.

Of four photos in a row three are. Kept are rows of what the model's own function packs.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from tests.vlm.families import REFERENCE_LAYER, TEXT_LAYERS, Entry, Row, Seen, largest
from tests.vlm.families._llava import BANNED, FIELDS, Photo, lay, logits_of
from tests.vlm.models import IMAGE_ID, make_photo, make_qwen2_config
from tests.vlm.models_onevision import (
    VIDEO_ID,
    make_onevision,
    make_onevision_processor,
)
from tests.vlm.next_by_hand import PATCHES, PHOTOS, grid_by_hand

NUMBERS = [0, 2, 4, 2]
PROCESSOR = make_onevision_processor().image_processor


class Packed(NamedTuple):
    """A whole photo as the model packs it."""

    features: Tensor  # [V, D], without newlines
    reference: Tensor  # [V, C], packed alike
    ids: Tensor  # int64 [V]
    places: Tensor  # int64 [V], among the tokens and newlines
    whole: int  # how many those are


def pack_whole(model: Any, photo: Image.Image, layer: int, in_tiles: bool = True) -> Packed:
    """A photo alone in its prompt, or not ``in_tiles`` beside another."""
    photos = [photo] if in_tiles else [photo, photo]
    pixels = PROCESSOR([photos], return_tensors="pt")["pixel_values"][0].to(model.dtype)
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states

    def pack(values: Tensor, newline: Tensor | None = None) -> Tensor:
        sizes, limit = [(photo.height, photo.width)], model.config.vision_aspect_ratio
        pack = model.model.pack_image_features
        [packed], _ = pack([values], sizes, newline, vision_aspect_ratio=limit)
        return packed  # type: ignore[no-any-return]

    reference = pack(states[layer + 1].float())
    ids = torch.arange(len(reference))
    if in_tiles:
        grid = grid_by_hand([size[:2] for size in PHOTOS].index(photo.size))
        tokens = torch.tensor([*range(PATCHES), *(token for line in grid for token in line)])
        # By "anyres_max_2".
        if len(tokens) - PATCHES <= 1.21 * 2 * PATCHES:
            ids = tokens
    is_newline = pack(torch.zeros(*states[-1].shape[:2], 1), torch.ones(1))[:, 0]
    places = (is_newline == 0).nonzero()[:, 0]
    features = pack(model.model.multi_modal_projector(states[-1]))
    return Packed(features, reference, ids, places, len(is_newline))


def see(
    model: Any,
    row: Row,
    budget: int,
    start: int = 0,
    layer: int = REFERENCE_LAYER,
    in_tiles: bool = True,
    newlines: str = "drop",
) -> Seen:
    text, photos = row
    seen = []
    for photo in photos:
        packed = pack_whole(model, photo, layer, in_tiles)
        kept = largest(packed.reference, budget)
        features, places = packed.features[kept], packed.places[kept]
        if newlines == "all" or budget >= packed.whole:  # it fits with its newlines
            is_kept = torch.ones(packed.whole, dtype=torch.bool)
            is_kept[packed.places] = torch.isin(packed.places, places)
            all_places = is_kept.nonzero()[:, 0]
            every = model.model.image_newline.expand(packed.whole, -1)
            features = every.index_copy(0, places, features)[all_places]
            places = all_places
        ids = packed.ids[kept].sort().values
        seen.append((Photo(features, places.tolist(), packed.whole), ids))
    line = lay(model, text, [photo for photo, _ in seen], start)
    return Seen(line, [ids for _, ids in seen])


def look(model: Any, photo: Image.Image, layer: int) -> tuple[Tensor, Tensor]:
    packed = pack_whole(model, photo, layer)
    return packed.reference, packed.places


ENTRY = Entry(
    name="llava_onevision",
    make_model=partial(
        make_onevision, seed=1, text_config=make_qwen2_config(num_hidden_layers=TEXT_LAYERS)
    ),
    make_processor=make_onevision_processor,
    make_photo=lambda number: make_photo(number, PHOTOS[NUMBERS[number % 4]][:2]),
    image="<image>",
    image_id=IMAGE_ID,
    banned=(*BANNED, VIDEO_ID),
    fields=FIELDS - {"cls_attention"},
    tower="model.vision_tower",
    projector="model.multi_modal_projector",
    see=see,
    look=look,
    logits=logits_of,
    make_deep=lambda depth: make_onevision(text_config=make_qwen2_config(num_hidden_layers=depth)),
)
