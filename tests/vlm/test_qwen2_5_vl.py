from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", minversion="5.19")

from ocvtp_kernels.selectors.at_random import RandomSelector
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from ocvtp_kernels.vlm.handle import Options
from ocvtp_kernels.vlm.qwen2_5_vl import FAMILY, WindowTower
from tests.vlm.models_qwen import (
    DEPTH,
    PHOTO,
    WIDTH,
    ByNorm,
    make_batch,
    make_model,
    make_photo,
    make_pruner,
    state_of,
)

BUDGET = 7
WIDE, SQUARE, SMALL = make_photo(10, 6), make_photo(4, 4, 1), make_photo(5, 3, 2)
ROWS = [
    (f"{PHOTO} what is this ?", [WIDE]),
    ("what is red ?", []),
    (f"that {PHOTO} and {PHOTO} cat ?", [SQUARE, SMALL]),
]


def attach(model: Any, budget: int = BUDGET, selector: Any = None, **options: Any) -> Any:
    return FAMILY.attach(model, None, selector or ByNorm(), budget, Options(**options))


@pytest.fixture
def model(one_thread: None) -> Any:
    return make_model()


def test_averaging_units_undoes_the_windows(model: Any) -> None:
    for photo in (WIDE, SQUARE, SMALL):
        batch = make_batch([(PHOTO, [photo])])
        grid = batch["image_grid_thw"]
        with torch.no_grad():
            states = model.model.visual(
                batch["pixel_values"], grid_thw=grid, output_hidden_states=True
            ).hidden_states
        expected, _ = state_of(model, photo, 1)
        tower = WindowTower(model.model.visual)
        order = tower.unit_order(tower.arguments(grid, states[2].device))
        assert order is not None
        torch.testing.assert_close(tower.average_units(states[2], order.argsort()), expected)


def test_the_selector_sees_images_of_one_size_together(model: Any) -> None:
    rows = [(f"{PHOTO} and {PHOTO} ?", [WIDE, SQUARE]), (f"{PHOTO} ?", [make_photo(10, 6, 5)])]
    selector = ByNorm()
    with attach(model, selector=selector):
        model.generate(**make_batch(rows), max_new_tokens=1)
    shapes = [tuple(inputs.reference_tokens.shape) for inputs in selector.received]
    assert shapes == [(2, 60, WIDTH), (1, 16, WIDTH)]
    assert [e.final_tokens.shape[:2] for e in selector.received] == [s[:2] for s in shapes]
    assert all(inputs.importance is None for inputs in selector.received)
    for image, photo in enumerate((WIDE, make_photo(10, 6, 5))):
        reference, final = state_of(model, photo, DEPTH // 3)
        torch.testing.assert_close(selector.received[0].reference_tokens[image], reference)
        torch.testing.assert_close(selector.received[0].final_tokens[image], final)


@pytest.mark.parametrize(
    "make",
    [lambda: RandomSelector(3), lambda: PrunerSelector(make_pruner())],
    ids=["random", "pruner"],
)
def test_an_image_keeps_the_same_tokens_alone(model: Any, make: Callable[[], Any]) -> None:
    with attach(model, selector=make()) as handle:
        model.generate(**make_batch(ROWS), max_new_tokens=1)
        together = handle.last.ids
        for photo, ids in zip((WIDE, SQUARE, SMALL), together, strict=True):
            assert ids.unique().numel() == BUDGET == len(ids)
            model.generate(**make_batch([(PHOTO + " ?", [photo])]), max_new_tokens=1)
            assert torch.equal(handle.last.ids[0], ids)


def test_attaching_refuses(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with attach(model), pytest.raises(ValueError, match="attached already"):
        attach(model)
    with pytest.raises(ValueError, match=f"reference_layer: expected 0 to {DEPTH - 1}, got 9"):
        attach(model, reference_layer=9)
    with pytest.raises(ValueError, match="expected one for conditional generation"):
        attach(model.model.visual)
    with pytest.raises(ValueError, match="enc_in_dim 32"):
        FAMILY.attach(model, None, PrunerSelector(make_pruner(48)), 7, Options())
    monkeypatch.setattr(model, "forward", lambda input_ids: None)
    with pytest.raises(ValueError, match=r"transformers >= 5\.19"):
        attach(model)
