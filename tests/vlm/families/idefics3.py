"""Idefics3: tiles with tags between them, the whole photo last; pixel shuffle."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from tests.vlm.families import REFERENCE_LAYER, TEXT_LAYERS, Entry, Row, Seen, process
from tests.vlm.families._llava import logits_of
from tests.vlm.families._tiles import FIELDS, lay, mean_units
from tests.vlm.models import IMAGE_ID, make_photo
from tests.vlm.models_qwen import needs_encoded_images_of
from tests.vlm.models_tiles import IDEFICS3, make_idefics3, make_idefics3_processor

# Of two tiles and the whole photo, of four and it, and one that is a single tile.
SIZES = [(100, 50), (100, 100), (50, 50), (101, 100)]


def make_entry(name: str, special: tuple[str, ...] = (), like: str = "", **changes: Any) -> Entry:
    """The entry of a model type.

    Args:
        name: of the model type.
        special: tags that are one token.
        like: see `Entry`.
        changes: of the image processor's settings.
    """
    make_processor = partial(make_idefics3_processor, name, special, **changes)
    processor = cache(make_processor)

    def prepare(model: Any, photo: Any) -> Tensor:
        pixels: Tensor = process(processor(), [("<image>", [photo])])["pixel_values"]
        return pixels.to(model.dtype)

    def look(model: Any, photo: Any, layer: int) -> tuple[Tensor, Tensor]:
        pixels = prepare(model, photo)[0]
        states = model.model.vision_model(pixels, output_hidden_states=True).hidden_states
        reference = mean_units(states[layer + 1])
        return reference, torch.arange(len(reference))

    def see(
        model: Any, row: Row, budget: int, start: int = 0, layer: int = REFERENCE_LAYER
    ) -> Seen:
        tokens = process(processor(), [row])["input_ids"][0].tolist()
        photos = []
        for photo in row[1]:
            pixels = prepare(model, photo)
            tiles = model.model.get_image_features(pixels, return_dict=True).pooler_output
            final = torch.cat([part.flatten(0, -2) for part in tiles])
            photos.append((look(model, photo, layer)[0], final))
        return lay(model, tokens, photos, IMAGE_ID, start, budget)

    return Entry(
        name=name,
        make_model=partial(make_idefics3, name, text={"num_hidden_layers": TEXT_LAYERS}),
        make_processor=make_processor,
        make_photo=lambda number: make_photo(number, SIZES[number % 4]),
        image="<image>",
        image_id=IMAGE_ID,
        banned=(IMAGE_ID,),
        fields=FIELDS,
        tower="model.vision_model",
        projector="model.connector",
        see=see,
        look=look,
        make_deep=lambda depth: make_idefics3(name, text={"num_hidden_layers": depth}),
        text="text_model",
        logits=partial(logits_of, text="text_model"),
        whole_prompt=True,
        like=like,
        marks=(needs_encoded_images_of(IDEFICS3[name]),),
    )


# Tags of several tokens, as of released ones.
ENTRY = make_entry("idefics3")
