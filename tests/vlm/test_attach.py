from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.profiler import profile

from ocvtp_kernels.selectors.at_random import RandomSelector
from ocvtp_kernels.vlm.attach import attach
from ocvtp_kernels.vlm.handle import Handle
from tests.vlm.models import (
    BUDGET,
    SELECTORS,
    generate,
    make_llava,
    make_llava_processor,
    make_pruner,
    make_text_config,
    prepare,
)


@pytest.fixture
def attached() -> Any:
    model, processor = make_llava(), make_llava_processor()
    with attach(model, processor, make_pruner(), BUDGET) as handle:
        yield model, processor, handle


def test_times_by_stage() -> None:
    model, processor = make_llava(), make_llava_processor()
    for selector in ("pruner", "rows"):
        with attach(model, processor, SELECTORS[selector](), BUDGET, timed=True) as handle:
            for _ in range(2):
                generate(model, prepare(processor))
            times = handle.last.times
            assert set(times) == {"encoder", "pruner", "projector"}
            assert all(0 < seconds < 60 for seconds in times.values())
    with attach(model, processor, RandomSelector(), 99, timed=True) as handle:
        generate(model, prepare(processor))
        assert set(handle.last.times) == {"encoder"}


@pytest.mark.parametrize("by_block", [False, True])
def test_removing_restores_everything(by_block: bool) -> None:
    model, processor = make_llava(), make_llava_processor()
    inputs = prepare(processor)
    expected = generate(model, inputs)
    parts = [processor, *model.modules()]
    before = [dict(vars(part)) for part in parts]
    hooks = [list(part._forward_hooks) for part in model.modules()]
    handle = attach(model, processor, make_pruner(), BUDGET)
    if by_block:
        with handle:
            generate(model, prepare(processor))
    else:
        generate(model, prepare(processor))
        handle.remove()
        handle.remove()
    assert [dict(vars(part)) for part in parts] == before
    assert [list(part._forward_hooks) for part in model.modules()] == hooks
    again = prepare(processor)
    assert torch.equal(again["input_ids"], inputs["input_ids"])
    assert torch.equal(generate(model, again), expected)


def test_a_method_set_before_comes_back() -> None:
    model, processor = make_llava(), make_llava_processor()
    stock = model.model.get_image_features
    calls = []

    @functools.wraps(stock)
    def counted(pixel_values: Tensor, **kwargs: Any) -> Any:
        calls.append(1)
        return stock(pixel_values, **kwargs)

    model.model.get_image_features = counted
    with attach(model, processor, RandomSelector(), 99):
        generate(model, prepare(processor))
    assert calls == [1] and model.model.get_image_features is counted


def test_attaching_twice_is_refused() -> None:
    model, processor = make_llava(), make_llava_processor()
    with attach(model, processor, make_pruner(), BUDGET):
        with pytest.raises(ValueError, match="attached already"):
            attach(model, make_llava_processor(), make_pruner(), BUDGET)
        # A processor writes for one budget only.
        fresh = make_llava()
        with pytest.raises(ValueError, match="LlavaProcessor: a selector is attached already"):
            attach(fresh, processor, make_pruner(), BUDGET)
        assert "get_image_features" not in vars(fresh.model)
    assert isinstance(attach(model, processor, make_pruner(), BUDGET), Handle)


def test_a_pruner_that_is_not_frozen_is_attached_as_a_frozen_copy() -> None:
    model, processor = make_llava(), make_llava_processor()
    pruner = make_pruner().train()
    with attach(model, processor, pruner, BUDGET) as handle:
        with profile() as events:
            generate(model, prepare(processor))
        kept = handle.last.ids
    assert not pruner.frozen and pruner.training
    ops = {event.name for event in events.events()}
    assert ops & {"ocvtp::prune", "ocvtp::prune_picks"}
    with attach(model, processor, make_pruner().freeze(), BUDGET) as handle:
        generate(model, prepare(processor))
        assert torch.equal(handle.last.ids, kept)


def test_bad_arguments_are_named() -> None:
    model, processor = make_llava(), make_llava_processor()
    before = dict(vars(processor))
    text = transformers.LlamaForCausalLM(make_text_config())
    for bad, message in (
        ({"model": text}, "llava, llava_next, .*, qwen3_vl, qwen3_vl_moe, got llama"),
        ({"model": torch.nn.Linear(2, 2)}, "got Linear"),
        ({"processor": object()}, "object has no replace_image_token"),
        ({"pruner": make_pruner(width=40)}, "enc_in_dim 32.*got 40"),
        ({"pruner": 3}, "pruner: expected an OCPruner or a selector"),
        ({"budget": 0}, "budget: expected at least 1, got 0"),
        ({"budget": 2.5}, "budget: expected a whole number"),
        ({"reference_layer": 4}, "reference_layer: expected 0 to 3, got 4"),
        ({"newlines": "some"}, "newlines: expected one of"),
    ):
        given = {"model": model, "processor": processor, "pruner": make_pruner()} | bad
        with pytest.raises((ValueError, TypeError), match=message):
            attach(**given)
    assert "get_image_features" not in vars(model.model) and dict(vars(processor)) == before


def test_the_inner_model_will_do() -> None:
    model, processor = make_llava(), make_llava_processor()
    with attach(model.model, processor, make_pruner(), BUDGET) as handle:
        generate(model, prepare(processor))
        assert handle.last.ids.shape == (3, BUDGET)
    assert "get_image_features" not in vars(model.model)


def test_the_processor_still_saves_and_prints(attached: Any, tmp_path: Any) -> None:
    _, processor, _ = attached
    assert "LlavaProcessor" in repr(processor)
    processor.save_pretrained(tmp_path)
    assert "replace_image_token" not in (tmp_path / "processor_config.json").read_text()


def test_a_call_that_the_model_would_refuse_is_refused_alike(attached: Any) -> None:
    model, processor, _ = attached
    features = model.model.get_image_features
    with pytest.raises(TypeError, match="pixel_values"):
        features()
    pixels = prepare(processor)["pixel_values"]
    with pytest.raises(TypeError, match="pixel_values"):
        features(pixels, pixel_values=pixels)
