"""Gemma 3: pooled tokens, images that attend in both directions, windows beside full attention."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.vlm.families import REFERENCE_LAYER, Entry, Line, Row, Seen, process
from tests.vlm.families._tiles import FIELDS, lay, mean_units
from tests.vlm.models import CACHE_NAME, IMAGE_ID, make_photo
from tests.vlm.models_gemma3 import LAYER_TYPES, make_gemma3, make_gemma3_processor

_processor = cache(make_gemma3_processor)


def encode(model: Any, photo: Any) -> Any:
    pixels = process(_processor(), [("<boi>", [photo])])["pixel_values"].to(model.dtype)
    return model.model.vision_tower(pixels, output_hidden_states=True)


def look(model: Any, photo: Any, layer: int) -> tuple[Tensor, Tensor]:
    reference = mean_units(encode(model, photo).hidden_states[layer + 1])
    return reference, torch.arange(len(reference))


def see(model: Any, row: Row, budget: int, start: int = 0, layer: int = REFERENCE_LAYER) -> Seen:
    tokens = process(_processor(), [row])["input_ids"][0].tolist()
    photos = []
    for photo in row[1]:
        final = model.model.multi_modal_projector(encode(model, photo).last_hidden_state)
        photos.append((look(model, photo, layer)[0], final[0]))
    return lay(model, tokens, photos, IMAGE_ID, start, budget)


def logits_of(model: Any, line: Line) -> Tensor:
    """Masks are those that transformers makes of the line's tokens."""
    tokens, embeddings = torch.tensor([line.tokens]), line.embeddings[None]
    masks = model.create_masks_for_generate(
        config=model.config,
        inputs_embeds=embeddings,
        attention_mask=torch.ones_like(tokens),
        position_ids=None,
        token_type_ids=(tokens == IMAGE_ID).long(),
        **{CACHE_NAME: None},
    )
    hidden = model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask=masks,
        position_ids=line.positions[:1],
        use_cache=False,
    ).last_hidden_state
    logits: Tensor = model.lm_head(hidden[0])
    return logits


ENTRY = Entry(
    name="gemma3",
    make_model=make_gemma3,
    make_processor=make_gemma3_processor,
    make_photo=lambda number: make_photo(number, (90 + 10 * (number % 3), 70)),
    image="<boi>",
    image_id=IMAGE_ID,
    banned=(IMAGE_ID,),
    fields=FIELDS | {"grid"},
    tower="model.vision_tower",
    projector="model.multi_modal_projector",
    see=see,
    look=look,
    logits=logits_of,
    make_deep=lambda depth: make_gemma3(
        text={"num_hidden_layers": depth, "layer_types": (LAYER_TYPES * depth)[:depth]}
    ),
    windows=True,
    no_decoder="most of its layers attend within windows",
)
