"""InternVL: tiles, the CLS token left out, pixel shuffle."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from tests.vlm.families import REFERENCE_LAYER, TEXT_LAYERS, Entry, Row, Seen, process
from tests.vlm.families._llava import logits_of
from tests.vlm.families._tiles import FIELDS, SIZES, lay, mean_units
from tests.vlm.models import IMAGE_ID, make_photo
from tests.vlm.models_qwen import needs_encoded_images_of
from tests.vlm.models_tiles import make_internvl, make_internvl_processor

_processor = cache(make_internvl_processor)


def look(model: Any, photo: Any, layer: int) -> tuple[Tensor, Tensor]:
    pixels = process(_processor(), [("<image>", [photo])])["pixel_values"].to(model.dtype)
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    reference = mean_units(states[layer + 1][:, 1:])
    return reference, torch.arange(len(reference))


def see(model: Any, row: Row, budget: int, start: int = 0, layer: int = REFERENCE_LAYER) -> Seen:
    tokens = process(_processor(), [row])["input_ids"][0].tolist()
    photos = []
    for photo in row[1]:
        pixels = process(_processor(), [("<image>", [photo])])["pixel_values"].to(model.dtype)
        final = model.model.get_image_features(pixels, return_dict=True).pooler_output
        photos.append((look(model, photo, layer)[0], final.flatten(0, 1)))
    return lay(model, tokens, photos, IMAGE_ID, start, budget)


ENTRY = Entry(
    name="internvl",
    make_model=partial(make_internvl, text={"num_hidden_layers": TEXT_LAYERS}),
    make_processor=make_internvl_processor,
    make_photo=lambda number: make_photo(number, SIZES[number % 4]),
    image="<image>",
    image_id=IMAGE_ID,
    banned=(IMAGE_ID,),
    fields=FIELDS | {"cls_attention"},
    tower="model.vision_tower",
    projector="model.multi_modal_projector",
    see=see,
    look=look,
    make_deep=lambda depth: make_internvl(text={"num_hidden_layers": depth}),
    logits=logits_of,
    whole_prompt=True,
    marks=(needs_encoded_images_of("InternVL"),),
)
