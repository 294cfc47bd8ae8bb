"""LLaVA-NeXT on a CLIP tower: all crops of a photo are one sequence, newline tokens go."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tests.vlm.families import REFERENCE_LAYER, TEXT_LAYERS, Entry, Row, Seen, largest
from tests.vlm.families._llava import BANNED, FIELDS, Photo, lay, logits_of, states_of
from tests.vlm.models import IMAGE_ID, make_photo, make_text_config
from tests.vlm.models_next import make_llava_next, make_next_processor
from tests.vlm.next_by_hand import PATCHES, PHOTOS, grid_by_hand

NUMBERS = [0, 2, 4, 2]
PROCESSOR = make_next_processor().image_processor


def see(model: Any, row: Row, budget: int, start: int = 0, layer: int = REFERENCE_LAYER) -> Seen:
    text, photos = row
    seen = [_see_photo(model, photo, budget, layer) for photo in photos]
    line = lay(model, text, [kept for kept, _ in seen], start)
    return Seen(line, [ids for _, ids in seen])


def _see_photo(model: Any, photo: Image.Image, budget: int, layer: int) -> tuple[Photo, Tensor]:
    """What is kept, and its ids; a photo that fits the budget with its newlines keeps both."""
    sizes = [size[:2] for size in PHOTOS]
    grid = grid_by_hand(sizes.index(photo.size))
    tokens = torch.tensor([*range(PATCHES), *(token for line in grid for token in line)])
    tokens = tokens.sort().values
    pixels = PROCESSOR(photo, return_tensors="pt")["pixel_values"][0]
    reference, final = (part.flatten(0, 1) for part in states_of(model, pixels, layer))
    ids = tokens[largest(reference[tokens], budget)]
    kept = set(ids.tolist())
    project = model.model.multi_modal_projector
    features, places, count = [], [], 0
    for line in [range(PATCHES), *grid]:
        for token in line:
            if token in kept:
                features.append(project(final[token])[None])
                places.append(count)
            count += 1
        if isinstance(line, range):  # the whole photo, scaled down, has no newlines
            continue
        if budget >= len(tokens) + len(grid):
            features.append(model.model.image_newline[None])
            places.append(count)
        count += 1
    return Photo(torch.cat(features), places, count), ids


def look(model: Any, photo: Image.Image, layer: int) -> tuple[Tensor, Tensor]:
    pixels = PROCESSOR(photo, return_tensors="pt")["pixel_values"][0]
    tokens, places, place = list(range(PATCHES)), list(range(PATCHES)), PATCHES
    for line in grid_by_hand([size[:2] for size in PHOTOS].index(photo.size)):
        tokens += line
        places += range(place, place + len(line))
        place += len(line) + 1  # a newline
    reference = states_of(model, pixels, layer)[0].flatten(0, 1)[tokens]
    return reference, torch.tensor(places)


ENTRY = Entry(
    name="llava_next",
    make_model=partial(
        make_llava_next,
        text_config=make_text_config(num_hidden_layers=TEXT_LAYERS, eos_token_id=None),
    ),
    make_processor=make_next_processor,
    make_photo=lambda number: make_photo(number, PHOTOS[NUMBERS[number % 4]][:2]),
    image="<image>",
    image_id=IMAGE_ID,
    banned=BANNED,
    fields=FIELDS,
    tower="model.vision_tower",
    projector="model.multi_modal_projector",
    see=see,
    look=look,
    logits=logits_of,
    make_deep=lambda depth: make_llava_next(
        text_config=make_text_config(num_hidden_layers=depth, eos_token_id=None)
    ),
)
