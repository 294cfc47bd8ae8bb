"""Weights that wait elsewhere until they are needed: hooks of accelerate set before and after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module

from ocvtp_kernels import attach
from tests.vlm.families import BUDGET, ByNorm, Entry, answers, entries


def by_module(model: Any) -> None:
    """Each module's own parameters come when it runs."""
    cpu_offload(model, execution_device="cpu")


def by_layer(model: Any) -> None:
    """All parameters of a layer come when the layer runs."""
    for part in model.modules():
        if type(part).__name__.endswith(("Block", "Layer")):
            weights = {name: value.clone() for name, value in part.state_dict().items()}
            hook = AlignDevicesHook("cpu", offload=True, weights_map=weights, place_submodules=True)
            add_hook_to_module(part, hook)


# Without a selector none works: a parameter of the model itself, experts that are no modules, and
# embeddings that the model moves to where its weights wait.
NOT_OFFLOADED = {
    ("llava_next", by_module),
    ("llava_onevision", by_module),
    ("idefics3", by_module),
    ("qwen3_vl_moe", by_layer),
    ("qwen3_5_moe", by_layer),
}


@pytest.mark.parametrize("first", ["offloaded", "attached"])
@pytest.mark.parametrize(
    ("entry", "offload"),
    [
        pytest.param(entry, offload, id=f"{name}-{offload.__name__}", marks=entry.marks)
        for name, entry in entries().items()
        for offload in (by_module, by_layer)
        if (name, offload) not in NOT_OFFLOADED
    ],
)
def test_an_offloaded_model_answers_the_same(
    entry: Entry, offload: Callable[[Any], None], first: str
) -> None:
    model, processor = entry.make_model(), entry.make_processor()
    rows = entry.rows(["{} what is this ?", "{} and {} cat ?"])
    plain = answers(entry, model, processor, rows)
    with attach(model, processor, ByNorm(), BUDGET):
        expected = answers(entry, model, processor, rows)
    model = entry.make_model()
    if first == "offloaded":
        offload(model)
    handle = attach(model, processor, ByNorm(), BUDGET)
    if first == "attached":
        offload(model)
    for _ in range(2):
        assert torch.equal(answers(entry, model, processor, rows), expected)
    handle.remove()
    assert torch.equal(answers(entry, model, processor, rows), plain)
