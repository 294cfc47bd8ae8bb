"""What the tests of all families share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("tokenizers")

from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from tests.vlm.families import (
    BUDGET,
    NEW,
    REFERENCE_LAYER,
    ByNorm,
    Entry,
    Line,
    Row,
    answer,
    process,
)
from tests.vlm.models import make_pruner

# One photo, two, none, and one of the size of the second; with padding on the left.
TEXTS = ["{} what is this ?", "red {} cat {} ?", "what is red ?", "a {} blue ?"]
PACKED = ["red red {} what is this ?", "a cat and a dog ?", "that {} and {} blue ?", "{} . ?"]
ALL = 10_000  # a budget that every photo fits
DETAILS = {"return_dict_in_generate": True, "output_logits": True}
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
# A pruner of importance, one of reference tokens alone, and a selector that reads nothing else.
SELECTORS: dict[str, Callable[[], Any]] = {
    "pruner": lambda: PrunerSelector(make_pruner()),
    "pruner of reference tokens": lambda: PrunerSelector(make_pruner(), importance=False),
    "reference tokens": ByNorm,
    "final tokens": lambda: ByNorm("final_tokens"),
}
SELECTOR = pytest.mark.parametrize("selector", SELECTORS)
SAVINGS = pytest.mark.parametrize("savings", [True, False])


def describe(model: Any, processor: Any) -> list[Any]:
    """Every part's class, the functions that it has of its own, and hooks that are not Hugging
    Face's own."""
    parts = []
    for part in (processor, *model.modules()):
        own = {name: value for name, value in vars(part).items() if callable(value)}
        kinds = [name for name in vars(part) if name.endswith("_hooks")]
        hooks = [hook for kind in kinds for hook in (vars(part)[kind] or {}).values()]
        ours = [hook for hook in hooks if not maker_of(hook).startswith("transformers.")]
        parts.append((type(part), own, ours, [name for name in vars(part) if "ocvtp" in name]))
    return parts


def maker_of(hook: Any) -> str:
    return str(getattr(hook, "__module__", None) or type(hook).__module__)


def ids_of(handle: Any) -> list[list[int]]:
    return [ids.tolist() for ids in handle.last.ids]


def check_answers(
    entry: Entry, model: Any, output: Any, rows: Sequence[Row], layer: int = REFERENCE_LAYER
) -> list[list[int]]:
    """Tokens and logits of every row are those by hand; returns the ids by hand."""
    ids = []
    for row, tokens, logits in zip(
        rows, output.sequences[:, -NEW:], torch.stack(output.logits, 1), strict=True
    ):
        with torch.no_grad():
            line, kept = entry.see(model, row, BUDGET, layer=layer)
        expected, by_hand = answer(entry, model, line)
        torch.testing.assert_close(logits, by_hand, **CLOSE)
        assert tokens.tolist() == expected
        ids += [image.tolist() for image in kept]
    return ids


def run_in_threads(*works: Callable[[], None], names: Sequence[str] = ()) -> None:
    """Runs all at once, and raises what one of them raised."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    names = [*names, *("asking" for _ in works)][: len(works)]
    threads = [
        threading.Thread(target=run, args=(work,), name=name)
        for work, name in zip(works, names, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def layers_of(entry: Entry, model: Any) -> list[Any]:
    """The encoder's layers."""
    tower = model.get_submodule(entry.tower)
    [layers] = [
        part
        for name, part in tower.named_modules()
        if name.split(".")[-1] in ("layers", "layer", "blocks") and isinstance(part, nn.ModuleList)
    ]
    return list(layers)


@torch.no_grad()
def whole_line(entry: Entry, model: Any, row: Row) -> tuple[Line, list[int]]:
    """A row and the tokens of its photos, all of which are there."""
    line, ids = entry.see(model, row, ALL)
    return line, [len(image) for image in ids]


@torch.no_grad()
def count_placeholders(entry: Entry, model: Any, row: Row) -> list[int]:
    """Those of each of a row's photos: its tokens, and newlines where there are any."""
    lines = [entry.see(model, (entry.image, [photo]), ALL).line for photo in row[1]]
    return [line.tokens.count(entry.image_id) for line in lines]


def skip_without_grid(entry: Entry) -> None:
    if "grid" not in entry.fields:
        pytest.skip("VLM-Pruner reads the grid")
    if entry.no_decoder:
        pytest.skip("no method can drop tokens in its decoder")


def labels_of(entry: Entry, batch: dict[str, Any]) -> Tensor:
    """Every word that another token of its row comes before."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    labels = ids.masked_fill((mask == 0) | (ids == entry.image_id), -100)
    labels[torch.arange(len(ids)), mask.argmax(1)] = -100
    return labels


def loss_by_hand(entry: Entry, model: Any, rows: Sequence[Row], budget: int) -> Tensor:
    losses = []
    for row in rows:
        line = entry.see(model, row, budget).line
        before = entry.logits(model, line)[:-1]
        targets = torch.tensor(line.tokens[1:])
        is_word = ~torch.isin(targets, torch.tensor(entry.banned))
        losses.append(F.cross_entropy(before, targets, reduction="none")[is_word])
    return torch.cat(losses).mean()


class Collate:
    """What a worker of a loader runs."""

    def __init__(self, processor: Any, rows: list[Row]) -> None:
        self.processor, self.rows = processor, rows

    def __call__(self, indices: list[int]) -> dict[str, Tensor]:
        return process(self.processor, [self.rows[index] for index in indices])
