from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", minversion="5.19")

from ocvtp_kernels.selectors.at_random import RandomSelector
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from ocvtp_kernels.vlm.handle import Options
from ocvtp_kernels.vlm.qwen2_5_vl import attach_qwen2_5_vl
from ocvtp_kernels.vlm.qwen_encoder import merge_units
from tests.vlm.models_qwen import (
    DEPTH,
    PHOTO,
    WIDTH,
    ByNorm,
    by_hand,
    choose,
    make_batch,
    make_model,
    make_photo,
    make_pruner,
    state_of,
)

BUDGET, STEPS = 7, 6
WIDE, SQUARE, SMALL = make_photo(10, 6), make_photo(4, 4, 1), make_photo(5, 3, 2)
ROWS = {
    "one": [(f"{PHOTO} what is this ?", [WIDE])],
    "two images": [(f"{PHOTO} and {PHOTO} cat ?", [SQUARE, SMALL])],
    "text and padding": [
        (f"{PHOTO} what is this ?", [WIDE]),
        ("what is red ?", []),
        (f"that {PHOTO} and {PHOTO} cat ?", [SQUARE, SMALL]),
    ],
    "fits the budget": [(f"{PHOTO} what ?", [make_photo(3, 2)]), (f"{PHOTO} red ?", [SMALL])],
}
GREEDY: dict[str, Any] = {
    "max_new_tokens": STEPS,
    "do_sample": False,
    "return_dict_in_generate": True,
    "output_logits": True,
}


def attach(model: Any, budget: int = BUDGET, selector: Any = None, **options: Any) -> Any:
    return attach_qwen2_5_vl(model, None, selector or ByNorm(), budget, Options(**options))


@pytest.fixture
def model(one_thread: None) -> Any:
    return make_model()


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_keeping_all_is_bit_identical(model: Any, case: str, settings: dict[str, Any]) -> None:
    batch = make_batch(ROWS[case])
    plain = model.generate(**batch, **GREEDY | settings)
    plain_logits = model(**batch).logits
    with attach(model, 60) as handle:
        kept = model.generate(**batch, **GREEDY | settings)
        assert torch.equal(model(**batch).logits, plain_logits)
        assert [len(ids) for ids in handle.last.ids] == [
            photo.width * photo.height // 784 for _, photos in ROWS[case] for photo in photos
        ]
    assert torch.equal(kept.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, plain.logits, strict=True))


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("layer", [None, 0, DEPTH - 1])
def test_pruned_is_as_by_hand(model: Any, case: str, layer: int | None) -> None:
    batch = make_batch(ROWS[case])
    handle = attach(model, reference_layer=layer)
    output = model.generate(**batch, **GREEDY)
    handle.remove()
    length = batch["input_ids"].shape[1]
    assert torch.equal(output.sequences[:, :length], batch["input_ids"])
    recorded = iter(handle.last.ids)
    for row, (text, photos) in enumerate(ROWS[case]):
        depth = DEPTH // 3 if layer is None else layer
        kept = [choose(model, photo, BUDGET, depth) for photo in photos]
        for ids in kept:
            assert torch.equal(next(recorded), ids)
        tokens = make_batch([(text, photos)])["input_ids"][0].tolist()
        answer, logits = by_hand(model, tokens, photos, kept, STEPS)
        assert output.sequences[row, length:].tolist() == answer
        torch.testing.assert_close(torch.stack(output.logits, 1)[row], logits, rtol=1e-4, atol=1e-4)


def test_pruning_changes_the_logits(model: Any) -> None:
    batch = make_batch(ROWS["one"])
    plain = model.generate(**batch, **GREEDY).logits[0]
    with attach(model):
        assert (model.generate(**batch, **GREEDY).logits[0] - plain).abs().max() > 0.01


def test_merge_units_undoes_the_windows(model: Any) -> None:
    for photo in (WIDE, SQUARE, SMALL):
        batch = make_batch([(PHOTO, [photo])])
        grid = batch["image_grid_thw"]
        with torch.no_grad():
            states = model.model.visual(
                batch["pixel_values"], grid_thw=grid, output_hidden_states=True
            ).hidden_states
        expected, _ = state_of(model, photo, 1)
        torch.testing.assert_close(merge_units(model.model.visual, states[2], grid), expected)


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
        model.generate(**make_batch(ROWS["text and padding"]), max_new_tokens=1)
        together = handle.last.ids
        for photo, ids in zip((WIDE, SQUARE, SMALL), together, strict=True):
            assert ids.unique().numel() == BUDGET == len(ids)
            model.generate(**make_batch([(PHOTO + " ?", [photo])]), max_new_tokens=1)
            assert torch.equal(handle.last.ids[0], ids)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"cache_implementation": "static"},
        {"use_cache": False},
    ],
    ids=str,
)
def test_a_batch_generates_as_its_rows_do(model: Any, settings: dict[str, Any]) -> None:
    rows = ROWS["text and padding"]
    settings = {"max_new_tokens": STEPS, "do_sample": False, **settings}
    batch = make_batch(rows)
    length, copies = batch["input_ids"].shape[1], settings.get("num_return_sequences", 1)
    with attach(model):
        together = model.generate(**batch, **settings)
        assert torch.equal(together[:, :length], batch["input_ids"].repeat_interleave(copies, 0))
        for row, (text, photos) in enumerate(rows):
            alone = make_batch([(text, photos)])
            answer = model.generate(**alone, **settings)[:, alone["input_ids"].shape[1] :]
            assert torch.equal(together[row * copies : (row + 1) * copies, length:], answer)


def test_the_static_cache_generates_the_same(model: Any) -> None:
    batch = make_batch(ROWS["text and padding"])
    with attach(model):
        dynamic = model.generate(**batch, max_new_tokens=STEPS, do_sample=False)
        static = model.generate(
            **batch, max_new_tokens=STEPS, do_sample=False, cache_implementation="static"
        )
    assert torch.equal(dynamic, static)


def test_return_sequences_of_sampling(model: Any) -> None:
    batch = make_batch(ROWS["text and padding"])
    with attach(model):
        sequences = model.generate(
            **batch, max_new_tokens=3, do_sample=True, num_return_sequences=3
        )
    length = batch["input_ids"].shape[1]
    assert sequences.shape == (9, length + 3)
    assert torch.equal(sequences[:, :length], batch["input_ids"].repeat_interleave(3, 0))


def test_attaching_refuses(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with attach(model), pytest.raises(ValueError, match="attached already"):
        attach(model)
    with pytest.raises(ValueError, match=f"reference_layer: expected 0 to {DEPTH - 1}, got 9"):
        attach(model, reference_layer=9)
    with pytest.raises(ValueError, match="expected a Qwen2_5_VLForConditionalGeneration"):
        attach(model.model.visual)
    with pytest.raises(ValueError, match="enc_in_dim 32"):
        attach_qwen2_5_vl(model, None, PrunerSelector(make_pruner(48)), 7, Options())
    monkeypatch.setattr(model, "forward", lambda input_ids: None)
    with pytest.raises(ValueError, match=r"transformers >= 5\.19"):
        attach(model)
