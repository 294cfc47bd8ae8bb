"""LLaVA-1.5 on a CLIP tower."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.vlm.families import REFERENCE_LAYER, TEXT_LAYERS, Entry, Row, Seen, largest
from tests.vlm.families._llava import BANNED, FIELDS, Photo, lay, logits_of, states_of
from tests.vlm.models import (
    IMAGE_ID,
    make_llava,
    make_llava_processor,
    make_photo,
    make_text_config,
)

PROCESSOR = make_llava_processor().image_processor


def see(model: Any, row: Row, budget: int, start: int = 0, layer: int = REFERENCE_LAYER) -> Seen:
    text, photos = row
    ids, kept = [], []
    for photo in photos:
        pixels = PROCESSOR(photo, return_tensors="pt")["pixel_values"]
        reference, final = states_of(model, pixels, layer)
        ids.append(largest(reference[0], budget))
        features = model.model.multi_modal_projector(final[0, ids[-1]])
        kept.append(Photo(features, ids[-1].tolist(), final.shape[1]))
    return Seen(lay(model, text, kept, start), ids)


def look(model: Any, photo: Any, layer: int) -> tuple[Tensor, Tensor]:
    pixels = PROCESSOR(photo, return_tensors="pt")["pixel_values"]
    reference = states_of(model, pixels, layer)[0][0]
    return reference, torch.arange(len(reference))


ENTRY = Entry(
    name="llava",
    make_model=partial(make_llava, text_config=make_text_config(num_hidden_layers=TEXT_LAYERS)),
    make_processor=make_llava_processor,
    make_photo=lambda number: make_photo(number, (90 + 10 * (number % 3), 70)),
    image="<image>",
    image_id=IMAGE_ID,
    banned=BANNED,
    fields=FIELDS | {"cls_token", "grid"},
    tower="model.vision_tower",
    projector="model.multi_modal_projector",
    see=see,
    look=look,
    logits=logits_of,
    make_deep=lambda depth: make_llava(
        text_config=make_text_config(num_hidden_layers=depth, eos_token_id=None)
    ),
)
