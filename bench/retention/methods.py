"""The methods that are compared, by name, and how their kept tokens are asked about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

import ocvtp_kernels as ocvtp
from bench.retention.model import PROMPT, TOKENS
from bench.retention.results import RANDOM
from bench.retention.scenes import Scene
from ocvtp_kernels.cost.layers import PROGRESSIVE
from ocvtp_kernels.selectors.interface import Stage
from ocvtp_kernels.selectors.registry import METHODS
from ocvtp_kernels.selectors.schedule import pyramid
from ocvtp_kernels.selectors.sparsevlm import SparseVLM, most_kept

SEEDS = range(5)
BATCH = 125  # pictures encoded at once
NO_TEXT = ("trim",)  # chooses by the question, which the vision tower does not see


class Method(NamedTuple):
    """A way to choose tokens.

    Attributes:
        make: a pruner or a selector from a seed.
        seeds: one, unless something is random in it.
        in_decoder: whether tokens are dropped in the text model, where they keep their positions.
        reference_layer: see `ocvtp_kernels.attach`.
        least: the fewest tokens that it can keep of `TOKENS`.
    """

    make: Callable[[int], Any]
    seeds: Sequence[int] = (0,)
    in_decoder: bool = False
    reference_layer: int | None = None
    least: int = 1


def _by_name(name: str, seed: int, **options: Any) -> Any:
    return ocvtp.make_selector(name, **({"seed": seed} if name == RANDOM else options))


class PyramidSparseVLM(SparseVLM):
    """SparseVLM that keeps as many tokens as PyramidDrop at every layer, centres among them.

    Its published counts make the mean over layers the budget, which four layers cannot have: the
    first one alone reads a quarter of all tokens on their mean.
    """

    def stages(self, budget: int, depth: int) -> tuple[Stage, ...]:
        """The stages of `pyramid` that drop any."""
        left, schedule = TOKENS, []
        for layer, count in pyramid(budget, depth):
            if count < left:
                schedule.append((layer, most_kept(left, count)))
                left = count
        return SparseVLM(schedule=schedule).stages(budget, depth)


def training_free() -> dict[str, Method]:
    """Every method that needs neither the question's embedding nor a file of weights.

    VLM-Pruner stands at the encoder, and it, FastV and DART before decoder layers 1 and 2 (``@1``,
    ``@2``); 2 is the published one of all three.
    """
    found = {name: Method(partial(_by_name, name)) for name in METHODS if name not in NO_TEXT}
    found["vlm-pruner"] = Method(partial(_by_name, "vlm-pruner", place="encoder"))
    # Four layers of the tower halve 100 tokens at most.
    found["tome"] = Method(partial(_by_name, "tome"), least=7)
    del found["fastv"], found["dart"]
    for name, layer in product(("vlm-pruner", "fastv", "dart"), (1, 2)):
        make = partial(_by_name, name, layer=layer)
        found[f"{name}@{layer}"] = Method(make, in_decoder=True)
    found["pyramiddrop"] = Method(partial(_by_name, "pyramiddrop"), in_decoder=True)
    found["sparsevlm"] = Method(lambda seed: PyramidSparseVLM(), in_decoder=True)
    found[RANDOM] = Method(partial(_by_name, RANDOM), SEEDS)
    return found


def pruner_method(
    path: Path, reference_layer: int | None = None, in_decoder: bool = False
) -> Method:
    """An OC-pruner from its file, at the encoder or in stages; the seed is that of its noise."""

    def make(seed: int) -> Any:
        pruner = ocvtp.OCPruner.from_checkpoint(path, noise_seed=seed)
        return ocvtp.make_selector(PROGRESSIVE, pruner=pruner) if in_decoder else pruner

    # In stages each seed is asked about by `generate`, which takes longer.
    return Method(make, SEEDS[:3] if in_decoder else SEEDS, in_decoder, reference_layer)


def to_pixel_values(processor: Any, scenes: Iterable[Scene]) -> Tensor:
    """The pictures as the model takes them: ``[B, 3, SIDE, SIDE]``."""
    pictures = [Image.fromarray(scene.pixels) for scene in scenes]
    pixels: Tensor = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    return pixels


@torch.no_grad()
def keep(
    model: Any, processor: Any, method: Method, seed: int, budget: int, pixels: Tensor
) -> tuple[Tensor, Tensor]:
    """The kept tokens, projected ``[B, T, D]``, and their ids ``[B, T]``."""
    features: list[Tensor] = []
    ids: list[Tensor] = []
    layer = method.reference_layer
    with ocvtp.attach(model, processor, method.make(seed), budget, reference_layer=layer) as handle:
        for part in pixels.split(BATCH):
            features += model.model.get_image_features(part).pooler_output
            assert handle.last is not None
            ids += handle.last.ids
    return torch.stack(features), torch.stack(ids)


@torch.no_grad()
def all_features(model: Any, pixels: Tensor) -> Tensor:
    """All tokens, projected: ``[B, TOKENS, D]``."""
    parts = [model.model.get_image_features(part).pooler_output for part in pixels.split(BATCH)]
    return torch.stack([image for part in parts for image in part])


def generate(model: Any, processor: Any, scenes: Iterable[Scene]) -> Iterator[Tensor]:
    """The first word of every answer as users get it, by the processor and ``generate``.

    Yields:
        ids ``[QUESTIONS]`` of a scene.
    """
    for scene in scenes:
        prompts = [PROMPT.format(question.text) for question in scene.questions]
        pictures = [Image.fromarray(scene.pixels)] * len(prompts)
        inputs = processor(text=prompts, images=pictures, padding=True, return_tensors="pt")
        yield model.generate(**inputs, max_new_tokens=1, do_sample=False)[:, -1]
