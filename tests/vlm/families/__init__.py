"""The model families that the tests here run over: one module each, with an `ENTRY`.

Each says how its tiny model is made and how a pruned row of it is computed by hand, which uses
plain transformers and nothing of `ocvtp_kernels.vlm`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor

from ocvtp_kernels.selectors.interface import SelectorInputs
from tests.vlm.models_qwen import DEPTH, Line, join

__all__ = [
    "BUDGET",
    "NEW",
    "REFERENCE_LAYER",
    "TEXT_LAYERS",
    "ByNorm",
    "Entry",
    "Line",
    "Row",
    "Seen",
    "answer",
    "answers",
    "entries",
    "generate",
    "join",
    "largest",
    "process",
    "words",
]

BUDGET, NEW, TEXT_LAYERS = 5, 3, 3
REFERENCE_LAYER = DEPTH // 3
# A row: its text and its photos.
Row = tuple[str, list[Image.Image]]


class Seen(NamedTuple):
    """A row as the language model gets it, and what is kept of its photos."""

    line: Line
    ids: list[Tensor]


@dataclass(frozen=True)
class Entry:
    """A family of models.

    Attributes:
        name: its model_type.
        make_model: makes a model of `TEXT_LAYERS` layers, always the same.
        make_processor: makes its processor.
        make_photo: makes the photo of a number; of four in a row two have one size, and where
            sizes matter one has fewer tokens than `BUDGET`.
        image: what stands for a photo in a text.
        image_id: the token of its placeholders.
        banned: tokens that no answer may have: placeholders and ends.
        fields: of `SelectorInputs`, those that its vision encoder fills.
        tower: path of the vision encoder.
        projector: path of what makes the language model's tokens of the encoder's.
        see: a row by hand: of the model, the row, the budget, the position that it begins at and
            the reference layer. Kept are the tokens of the largest norm, as `ByNorm` keeps them.
        look: of the model, a photo and the reference layer: the photo's reference tokens
            ``[V, C]``, and their places int64 ``[V]`` among its placeholders.
        logits: ``[L, vocabulary]`` of a line, without a cache.
        make_deep: makes the model of another number of layers in the language model.
        text: where the language model is in the inner model.
        axes: of its positions.
        whole_prompt: whether a prompt keeps its placeholders, and columns are dropped inside.
        linear: whether its language model has layers of linear attention: no padding behind a
            cache, and packed samples need bounds.
        windows: whether layers attend within windows of columns, and images in both directions:
            padding behind a cache is within windows, and bounds tell nothing of directions.
        no_decoder: why it takes no methods in the decoder, as the error says.
        like: a family whose code it shares: most of its own tests are slow ones.
        marks: of its tests.
    """

    name: str
    make_model: Callable[[], Any]
    make_processor: Callable[[], Any]
    make_photo: Callable[[int], Image.Image]
    image: str
    image_id: int
    banned: Sequence[int]
    fields: frozenset[str]
    tower: str
    projector: str
    see: Callable[..., Seen]
    look: Callable[[Any, Image.Image, int], tuple[Tensor, Tensor]]
    logits: Callable[[Any, Line], Tensor]
    make_deep: Callable[[int], Any]
    text: str = "language_model"
    axes: int = 1
    whole_prompt: bool = False
    linear: bool = False
    windows: bool = False
    no_decoder: str = ""
    like: str = ""
    marks: Sequence[pytest.MarkDecorator] = ()

    def text_of(self, model: Any) -> Any:
        """The language model of a model."""
        return getattr(model.model, self.text)

    def rows(self, texts: Sequence[str], first: int = 0) -> list[Row]:
        """Rows of texts with ``{}`` where photos are, which are numbered from ``first``."""
        rows = []
        for text in texts:
            count = text.count("{}")
            photos = [self.make_photo(first + index) for index in range(count)]
            rows.append((text.format(*[self.image] * count), photos))
            first += count
        return rows


def process(processor: Any, rows: Sequence[Row], **settings: Any) -> dict[str, Any]:
    """The batch of some rows, padded on the left."""
    photos = [photo for _, images in rows for photo in images]
    texts = [text for text, _ in rows]
    settings = {"padding": True, "return_tensors": "pt"} | settings
    return dict(processor(text=texts, images=photos or None, **settings))


@torch.no_grad()
def generate(entry: Entry, model: Any, batch: dict[str, Any], **settings: Any) -> Any:
    """The prompt and `NEW` tokens."""
    defaults: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
    defaults["suppress_tokens"] = list(entry.banned)
    return model.generate(**batch, **defaults | settings)


def answers(
    entry: Entry, model: Any, processor: Any, rows: Sequence[Row], **settings: Any
) -> Tensor:
    """The tokens that follow each row: ``[rows, NEW]``."""
    tokens: Tensor = generate(entry, model, process(processor, rows), **settings)
    return tokens[:, -NEW:]


def words(model: Any, tokens: Sequence[int], start: int) -> Line:
    """Tokens of text, placed one by one from ``start`` on."""
    # Called, as some scale what they look up.
    embeddings = model.get_input_embeddings()(torch.tensor(tokens))
    positions = start + torch.arange(len(tokens)).expand(3, -1)
    return Line(embeddings, positions, list(tokens), [], start + len(tokens))


@torch.no_grad()
def answer(entry: Entry, model: Any, line: Line, steps: int = NEW) -> tuple[list[int], Tensor]:
    """Greedy tokens by hand, and the logits ``[steps, vocabulary]`` before each."""
    tokens: list[int] = []
    logits = []
    for _ in range(steps):
        logits.append(entry.logits(model, line)[-1])
        allowed = logits[-1].clone()
        allowed[list(entry.banned)] = -torch.inf
        tokens.append(int(allowed.argmax()))
        line = join(line, words(model, tokens[-1:], line.following))
    return tokens, torch.stack(logits)


class ByNorm:
    """Keeps the tokens of the largest reference norm; reads ``fields`` too, without effect."""

    def __init__(self, *fields: str) -> None:
        self.needs = frozenset({"reference_tokens", *fields})

    def __call__(self, inputs: SelectorInputs, budget: int) -> Tensor:
        return largest(inputs.reference_tokens, budget)


def largest(tokens: Tensor, budget: int) -> Tensor:
    """The ``budget`` tokens of the largest norm, or all: ``[..., N, C]`` to ids ``[..., T]``."""
    budget = min(budget, tokens.shape[-2])
    return tokens.norm(dim=-1).topk(budget, dim=-1).indices.sort(dim=-1).values


@cache
def entries() -> dict[str, Entry]:
    """All families by name; modules of several begin with an underscore."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    names = [name for name in names if name[0] != "_" and "test" not in name]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return {module.ENTRY.name: module.ENTRY for module in modules}
