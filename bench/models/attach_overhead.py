"""Host time that attaching adds to a call: ``python -m bench run --suite attach``.

Tiny models on the CPU, where nearly all of a call is the host's work. The attached call, with the
random selector, and the same work by hand take turns. By hand means the model's own modules and
the selector, nothing that is not needed, and whatever depends on sizes alone made beforehand. Of
models whose columns are dropped inside it means the plain model's call, with the selector and the
reference tokens it is given beside it.

What may be added is a share of a plain call of LLaVA, which takes turns with both, so that a slow
host, or a busy one, does not decide.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.models.llava import TINY, TINY_NEXT, Placeholders, Shape, Vlm
from bench.modes import threads
from bench.processes import add
from bench.results import ProcessRow, Results, Versus
from bench.timing import measure
from ocvtp_kernels.selectors.at_random import RandomSelector
from ocvtp_kernels.selectors.interface import SelectorInputs, run_selector
from ocvtp_kernels.vlm.attach import attach
from ocvtp_kernels.vlm.columns.tower import UnitTower
from ocvtp_kernels.vlm.units import average_units
from tests.vlm.families import entries, process
from tests.vlm.models import NUM_PATCHES, WIDTH
from tests.vlm.models_qwen import NAMES, PHOTO, make_batch, make_model, make_photo
from tests.vlm.models_tiles import MERGE

BUDGET = 5
# Of TINY's sizes: with few patches most of a call is host time.
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "image_size": 56}
REFERENCE_LAYER = SIZES["num_hidden_layers"] // 3
ALLOWED = 0.3  # of LLaVA's plain call, which takes 1 ms on the CPU of the results
# Of models of tiles, whose call is both: a tower that is watched, and columns that are dropped.
ALLOWED_OF_TILES = 0.5
TILES = ("internvl", "idefics3")
SECONDS = 5.0  # about how long for a model
ROUNDS = (20, 400)


class Pair(NamedTuple):
    """The same work twice; both return the image's features, or what follows from them."""

    attached: Callable[[], Tensor]
    by_hand: Callable[[], Tensor]


def llava(shape: Shape) -> Pair:
    """``get_image_features`` of one image: tower without its last layer, gather, projector."""
    vlm = Vlm(replace(shape, vision={**shape.vision, **SIZES}), torch.device("cpu"))
    selector, pixels, arguments = RandomSelector(0), vlm.pixels(1, 0), vlm.image_arguments(1)
    handle = attach(vlm.model, Placeholders(vlm.shape, 1), selector, BUDGET)
    inner, crops = vlm.model.model, pixels.flatten(0, -4)
    layers = inner.vision_tower.encoder.layers

    def attached() -> Tensor:
        return torch.stack(list(inner.get_image_features(pixels, **arguments).pooler_output))

    def tokens() -> tuple[Tensor, Tensor]:
        """Of all crops ``[N, C]``: those decided on, and those to keep some of."""
        layers[-1].forward = lambda hidden_states, *_args, **_kwargs: hidden_states
        try:
            states = inner.vision_tower(crops, output_hidden_states=True).hidden_states
        finally:
            del layers[-1].forward
        reference, final = (states[i][:, 1:].flatten(0, 1) for i in (REFERENCE_LAYER + 1, -2))
        return reference, final

    features = attached()
    assert handle.last is not None
    kept = torch.stack(list(handle.last.ids))[0]
    plain = inner.multi_modal_projector(tokens()[1][kept])
    # In the order of the packed sequence, which is known beforehand.
    rows = kept[torch.cdist(features[0], plain).argmin(dim=1)]

    def by_hand() -> Tensor:
        reference, final = tokens()
        run_selector(selector, SelectorInputs(reference[None], reference[None]), BUDGET)
        return torch.stack([inner.multi_modal_projector(final[rows])])

    return Pair(attached, by_hand)


def columns(name: str) -> Pair:
    """``generate`` of one token; both return the prompt alone, which is the same."""
    model, plain = make_model(name=name), make_model(name=name)
    photos, selector = [make_photo(4, 3, name=name)], RandomSelector(0)
    batch: dict[str, Any] = make_batch([(f"{PHOTO} what is this ?", photos)], name)
    settings = {"max_new_tokens": 1, "do_sample": False}
    attach(model, None, selector, BUDGET)
    prompt, tower = batch["input_ids"].shape[1], UnitTower(plain.model.visual)
    states = torch.randn(len(batch["pixel_values"]), tower.width)
    unit_index = torch.randperm(len(states) // tower.unit)

    def attached() -> Tensor:
        output: Tensor = model.generate(**batch, **settings)
        return output[:, :prompt].float()

    def by_hand() -> Tensor:
        reference = tower.average_units(states, unit_index)[None]
        run_selector(selector, SelectorInputs(reference, reference), BUDGET)
        output: Tensor = plain.generate(**batch, **settings)
        return output[:, :prompt].float()

    return Pair(attached, by_hand)


def tiles(name: str) -> Pair:
    """As `columns`, of a photo in tiles."""
    entry = entries()[name]
    (model, plain), selector = (entry.make_model(), entry.make_model()), RandomSelector(0)
    processor, [row] = entry.make_processor(), entry.rows(["{} what is this ?"])
    batch, settings = process(processor, [row]), {"max_new_tokens": 1, "do_sample": False}
    attach(model, processor, selector, BUDGET)
    prompt = batch["input_ids"].shape[1]
    states = torch.randn(len(batch["pixel_values"].flatten(0, -4)), NUM_PATCHES, WIDTH)

    def attached() -> Tensor:
        output: Tensor = model.generate(**batch, **settings)
        return output[:, :prompt].float()

    def by_hand() -> Tensor:
        reference = average_units(states, MERGE).flatten(0, 1)[None]
        run_selector(selector, SelectorInputs(reference, reference), BUDGET)
        output: Tensor = plain.generate(**batch, **settings)
        return output[:, :prompt].float()

    return Pair(attached, by_hand)


PAIRS: dict[tuple[str, str], Callable[[], Pair]] = {
    ("llava", "get_image_features"): partial(llava, TINY),
    ("llava_next", "get_image_features"): partial(llava, TINY_NEXT),
    **{(name, "generate"): partial(columns, name) for name in NAMES},
    **{(name, "generate"): partial(tiles, name) for name in TILES},
}


@torch.no_grad()
def run(results: Results, folder: Path, _: torch.device, short: bool, deadline: float) -> int:
    """Measures every pair, saving after each; returns in how many attaching adds too much."""
    refused, yardstick = 0, llava(TINY).by_hand
    for (model, call), make in PAIRS.items():
        if time.monotonic() > deadline:
            print(f"out of time: {model} and what comes after is left out")
            break
        try:
            versus, unit = compare(make(), yardstick, SECONDS / 5 if short else SECONDS)
        except ValueError as error:
            print(f"{model} refused: {error}", flush=True)
            refused += 1
            continue
        add(results, folder, ProcessRow(model, call, "s", versus))
        added = versus.ours.median - versus.theirs.median
        share = f"{added / unit:.3f} of LLaVA's plain call"
        allowed = ALLOWED_OF_TILES if model in TILES else ALLOWED
        if added > allowed * unit:
            print(f"{model} refused: adds {share}, more than the {allowed} allowed")
            refused += 1
        else:
            print(f"{model} adds {share}")
    return refused


def compare(pair: Pair, yardstick: Callable[[], Tensor], seconds: float) -> tuple[Versus, float]:
    """Both ways and the yardstick in turns on one thread, for about so many seconds.

    Returns:
        Both ways, and the median of the yardstick in seconds.

    Raises:
        ValueError: they do not give the same.
    """
    with threads(1):
        first, second = pair.attached(), pair.by_hand()
        if first.shape != second.shape or not torch.allclose(first, second, rtol=1e-3, atol=1e-4):
            raise ValueError("attached and by hand give different results")
        calls = pair._asdict() | {"yardstick": yardstick}
        times = measure(calls, seconds=seconds, rounds=ROUNDS)
    return Versus(times["by_hand"], times["attached"]), times["yardstick"].median
