"""The entry of a Qwen: columns are dropped inside, and kept tokens stay at their positions."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from tests.vlm.families import REFERENCE_LAYER, TEXT_LAYERS, Entry, Row, Seen, largest, process
from tests.vlm.models_qwen import (
    IMAGE,
    PHOTO,
    VIDEO,
    lay,
    logits_of,
    make_model,
    make_photo,
    make_processor,
    needs_encoded_images,
)
from tests.vlm.models_qwen import (
    look as look_at,
)

# Of 15, 16, 4 and 16 merged tokens.
SIZES = [(5, 3), (4, 4), (2, 2), (4, 4)]

_processor_of = cache(make_processor)


def see(model: Any, row: Row, budget: int, start: int = 0, layer: int = REFERENCE_LAYER) -> Seen:
    tokens = process(_processor_of(model.config.model_type), [row])["input_ids"][0].tolist()
    ids, visuals = [], []
    for photo in row[1]:
        seen = look_at(model, photo, layer)
        ids.append(largest(seen.reference, budget))
        visuals.append(seen.keep(ids[-1]))
    return Seen(lay(model, tokens, visuals, start), ids)


def look(model: Any, photo: Any, layer: int) -> tuple[Tensor, Tensor]:
    reference = look_at(model, photo, layer).reference
    return reference, torch.arange(len(reference))


def make_entry(name: str, like: str = "") -> Entry:
    return Entry(
        name=name,
        make_model=partial(make_model, name=name, text={"num_hidden_layers": TEXT_LAYERS}),
        make_processor=partial(make_processor, name),
        make_photo=lambda number: make_photo(*SIZES[number % 4], seed=number, name=name),
        image=PHOTO,
        image_id=IMAGE,
        banned=(IMAGE, VIDEO),
        fields=frozenset({"reference_tokens", "final_tokens", "grid"}),
        tower="model.visual",
        projector="model.visual.merger",
        see=see,
        look=look,
        logits=logits_of,
        make_deep=lambda depth: make_model(name=name, text={"num_hidden_layers": depth}),
        axes=3,
        whole_prompt=True,
        linear="3_5" in name,
        no_decoder="most of its layers are linear attention" if "3_5" in name else "",
        like=like,
        marks=(needs_encoded_images(name),),
    )
