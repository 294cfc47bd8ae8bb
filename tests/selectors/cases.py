"""Random images for the selectors: everything that any of them reads."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels import use_backend
from ocvtp_kernels.selectors.interface import Selected
from ocvtp_kernels.selectors.registry import select
from tests.cases import running

HEADS = 3
# On the CPU: plainly, and on whatever the default is.
WAYS = ("reference", "plain", "cpu")
# Methods with a quirk to reproduce.
PUBLISHED = (
    *("vlm-pruner", "divprune", "visionzip", "hiprune", "cdpruner", "trim"),
    *("holov", "dart"),
)


@contextmanager
def on(way: str) -> Iterator[None]:
    """Within the block ops run in one of `WAYS`."""
    with use_backend("cpu") if way == "cpu" else running(way):
        yield


@dataclass
class Images:
    """A batch of images of ``grid`` tokens, and a budget, all drawn from the seed.

    ``sizes`` are the batch, the rows and columns of the grid, and the width, where not drawn.
    """

    seed: int
    dtype: torch.dtype = torch.float64
    sizes: tuple[int, int, int, int] | None = None
    grid: tuple[int, int] = field(init=False)
    budget: int = field(init=False)
    tokens: Tensor = field(init=False)
    inputs: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        draw = random.Random(self.seed)
        generator = torch.Generator().manual_seed(self.seed)
        self.grid = (draw.randint(3, 8), draw.randint(3, 10))
        batch, num_tokens = draw.randint(1, 3), self.grid[0] * self.grid[1]
        self.budget = draw.randint(1, num_tokens)
        # More channels than tokens: their similarities have full rank.
        width = num_tokens + draw.randint(1, 20)
        if self.sizes is not None:
            batch, *grid, width = self.sizes
            self.grid, num_tokens = (grid[0], grid[1]), grid[0] * grid[1]

        def normal(*shape: int) -> Tensor:
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            return values.to(self.dtype)

        # From unrelated tokens to such as are nearly alike.
        shared = draw.choice([0.0, 0.5, 1.0, 3.0]) * normal(batch, 1, width)
        self.tokens = normal(batch, num_tokens, width) + shared
        self.inputs = {
            "keys": normal(batch, num_tokens, 4 * HEADS),
            "cls_attention": normal(batch, num_tokens).softmax(1),
            "importance": normal(batch, num_tokens).softmax(1),
            "shallow_importance": normal(batch, num_tokens).softmax(1),
            "grid": self.grid,
            "text": normal(batch, 7),
            "text_tokens": normal(batch, num_tokens, 7),
            "cls_token": normal(batch, width),
            "text_attention": normal(batch, num_tokens).softmax(1),
            "relevance": normal(batch, num_tokens),
            "text_pivots": normal(batch, 3 if self.sizes else draw.randint(1, 5), width),
        }

    def select(self, method: str, **options: Any) -> Selected:
        return select(self.tokens, self.budget, method, **self.inputs, **options)

    def image(self, index: int) -> dict[str, Any]:
        """One of the images in NumPy, float64, and its budget."""
        given = {"tokens": self.tokens, **self.inputs}
        return {
            name: value[index].double().numpy() if isinstance(value, Tensor) else value
            for name, value in given.items()
        } | {"budget": self.budget}

    def images(self) -> list[dict[str, Any]]:
        return [self.image(index) for index in range(len(self.tokens))]


def tied(seed: int) -> Images:
    """Images of few distinct tokens and scores, with cosines of exactly 0 and 1."""
    images = Images(seed)
    generator = torch.Generator().manual_seed(seed)

    def few(*shape: int, values: int = 4) -> Tensor:
        return torch.randint(0, values, shape, generator=generator)

    def one_hot(width: int) -> Tensor:
        batch, num_tokens, _ = images.tokens.shape
        return torch.eye(width, dtype=images.dtype)[few(batch, num_tokens, values=width)]

    for name, value in images.inputs.items():
        if isinstance(value, Tensor):
            images.inputs[name] = few(*value.shape).to(images.dtype) / 8
    images.tokens, images.inputs["keys"] = one_hot(images.tokens.shape[2] // 3), one_hot(12)
    images.inputs["cls_token"] = images.tokens[:, 0]
    images.inputs["text_pivots"] = images.tokens[:, :4]
    return images
