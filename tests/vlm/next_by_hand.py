"""LLaVA-NeXT's pruned inputs computed by hand, image by image and token by token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import SelectorInputs
from ocvtp_kernels.vlm import attach as public
from tests.vlm.models import make_photo

PATCHES = 16
SIDE = 4
REFERENCE = 1
# Width, height, tiles across, tiles down, rows and columns of the tiles that are padding on
# either side.
PHOTOS = [
    (90, 50, 2, 1, 0, 0),
    (100, 70, 2, 2, 1, 0),
    (50, 160, 1, 3, 0, 0),
    (70, 100, 2, 2, 0, 1),
    (110, 108, 2, 2, 0, 0),
]
TEXTS = ["what is <image> this ?", "a <image> cat <image> :", "red blue dogs ?", "<image> two"]


class LoudestSelector:
    """Keeps the reference tokens of the largest norm."""

    def __init__(self, needs_importance: bool = False) -> None:
        self.wants = frozenset({"importance"} if needs_importance else ())
        self.seen: list[SelectorInputs] = []

    def __call__(self, inputs: SelectorInputs, budget: int) -> Tensor:
        self.seen.append(inputs)
        norms = inputs.reference_tokens.norm(dim=-1)
        return norms.topk(budget, dim=1).indices.sort(dim=1).values


def make_batch(processor: Any, texts: list[str] = TEXTS, first: int = 0) -> Any:
    photos = iter(range(first, 100))
    images = []
    for text in texts:
        row = [next(photos) for _ in range(text.count("<image>"))]
        images.append([make_photo(i, PHOTOS[i % len(PHOTOS)][:2]) for i in row])
    return processor(
        images=[row for row in images if row] or None,
        text=texts,
        padding=True,
        return_tensors="pt",
    )


def attach(model: Any, processor: Any, budget: int, selector: Any = None, **options: Any) -> Any:
    options = {"reference_layer": REFERENCE, **options}
    return public.attach(model, processor, selector or LoudestSelector(), budget, **options)


def grid_by_hand(photo: int) -> list[list[int]]:
    """Rows of ids of a photo's tiles, without padding."""
    _, _, across, down, pad_rows, pad_columns = PHOTOS[photo % len(PHOTOS)]
    rows = []
    for y in range(pad_rows, down * SIDE - pad_rows):
        row = []
        for x in range(pad_columns, across * SIDE - pad_columns):
            crop = 1 + (y // SIDE) * across + x // SIDE
            row.append(crop * PATCHES + (y % SIDE) * SIDE + x % SIDE)
        rows.append(row)
    return rows


@torch.no_grad()
def features_by_hand(
    model: Any, batch: Any, photo: int, budget: int, newlines: str, row: int
) -> tuple[Tensor, list[int]]:
    """Image features ``[T, D]`` and ids of one photo of the batch, without the adapter."""
    _, _, across, down, _, _ = PHOTOS[photo % len(PHOTOS)]
    crops = batch["pixel_values"][row][: 1 + across * down]
    states = model.model.vision_tower(crops, output_hidden_states=True).hidden_states
    prefix = int(model.config.vision_feature_select_strategy == "default")
    layers = model.config.vision_feature_layer
    layers = [layers] if isinstance(layers, int) else layers
    reference = states[REFERENCE + 1][:, prefix:].flatten(0, 1)
    final = torch.cat([states[layer][:, prefix:].flatten(0, 1) for layer in layers], -1)
    grid = grid_by_hand(photo)
    tokens = list(range(PATCHES)) + [token for line in grid for token in line]
    packed = len(tokens) + len(grid)
    whole = budget >= (packed if newlines == "drop" else len(tokens))
    norms = {token: float(reference[token].norm()) for token in tokens}
    kept = set(sorted(tokens, key=norms.__getitem__, reverse=True)[:budget])
    rows = [final[token] for token in range(PATCHES) if token in kept]
    projector = model.model.multi_modal_projector
    rows = [projector(token) for token in rows]
    for line in grid:
        rows += [projector(final[token]) for token in line if token in kept]
        if whole or newlines == "all":
            rows.append(model.model.image_newline)
    return torch.stack(rows), sorted(kept)


@torch.no_grad()
def embed_by_hand(
    model: Any, batch: Any, budget: int, newlines: str = "drop", first: int = 0
) -> tuple[Tensor, list[list[int]]]:
    """Input embeddings with every placeholder replaced in turn, and the ids of every photo."""
    embeds = model.get_input_embeddings()(batch["input_ids"]).clone()
    photos = range(len(batch["image_sizes"]))
    features, kept = zip(
        *(features_by_hand(model, batch, first + i, budget, newlines, i) for i in photos),
        strict=True,
    )
    positions = (batch["input_ids"] == model.config.image_token_id).nonzero().tolist()
    rows = torch.cat(features)
    assert len(positions) == len(rows)
    for (sample, position), row in zip(positions, rows, strict=True):
        embeds[sample, position] = row
    return embeds, list(kept)


@torch.no_grad()
def check_logits(model: Any, batch: Any, embeds: Tensor) -> None:
    real = batch["attention_mask"].bool()
    logits = model(**batch).logits[real]
    by_hand = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits[real]
    torch.testing.assert_close(logits, by_hand)


@torch.no_grad()
def generate_by_hand(model: Any, embeds: Tensor, mask: Tensor, steps: int) -> Tensor:
    """Greedy tokens without a cache."""
    tokens = []
    for _ in range(steps):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
        tokens.append(logits[:, -1].argmax(-1))
        embeds = torch.cat((embeds, model.get_input_embeddings()(tokens[-1])[:, None]), 1)
        mask = torch.cat((mask, mask.new_ones(len(mask), 1)), 1)
    return torch.stack(tokens, 1)


def generate(model: Any, batch: Any, steps: int = 6, **options: Any) -> Tensor:
    output = model.generate(**batch, max_new_tokens=steps, do_sample=False, **options)
    return output[:, batch["input_ids"].shape[1] :]
