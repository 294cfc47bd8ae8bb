"""Attaching VLM-Pruner to a decoder and taking it off; what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("tokenizers")

import torch
import transformers

from ocvtp_kernels.selectors.interface import Selected, SelectorInputs
from ocvtp_kernels.selectors.vlm_pruner import VLMPruner
from ocvtp_kernels.vlm import decoder
from ocvtp_kernels.vlm.attach import attach
from tests.vlm.decoder_by_hand import BUDGET, make_deep_llava, make_deep_qwen
from tests.vlm.models import (
    PHOTOS,
    generate,
    make_llava,
    make_llava_processor,
    make_pruner,
    make_text_config,
    prepare,
)
from tests.vlm.models_next import make_llava_next, make_next_processor
from tests.vlm.models_qwen import PHOTO, make_batch, make_photo, needs_encoded_images

PROCESSOR = make_llava_processor()


class Breaks(VLMPruner):
    """Fails as often as given."""

    failures = 1

    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("selection failed")
        return super().__call__(inputs, budget)


def test_an_error_leaves_the_model_usable() -> None:
    model, inputs = make_deep_llava(), prepare(PROCESSOR)
    with attach(model, PROCESSOR, VLMPruner(), BUDGET):
        expected = generate(model, inputs)
    with attach(model, PROCESSOR, Breaks(), BUDGET):
        with pytest.raises(RuntimeError, match="selection failed"):
            generate(model, inputs)
        assert torch.equal(generate(model, inputs), expected)


def test_removing_restores_everything() -> None:
    model, inputs = make_deep_llava(), prepare(PROCESSOR)
    expected = generate(model, inputs)
    parts = [PROCESSOR, *model.modules()]
    before = [dict(vars(part)) for part in parts]
    hooks = [list(part._forward_hooks) for part in model.modules()]
    with attach(model, PROCESSOR, VLMPruner(), BUDGET):
        assert not torch.equal(generate(model, inputs), expected)
    assert [dict(vars(part)) for part in parts] == before
    assert [list(part._forward_hooks) for part in model.modules()] == hooks
    assert torch.equal(generate(model, inputs), expected)


def test_times_by_stage() -> None:
    model, inputs = make_deep_llava(), prepare(PROCESSOR)
    with attach(model, PROCESSOR, VLMPruner(), BUDGET, timed=True) as handle:
        assert handle.last is None
        for _ in range(2):
            generate(model, inputs)
            assert set(handle.last.times) == {"encoder", "pruner"}
            assert all(0 < seconds < 60 for seconds in handle.last.times.values())


def test_the_inner_model_alone() -> None:
    model, inputs = make_deep_llava(), prepare(PROCESSOR)
    with torch.no_grad():
        with attach(model, PROCESSOR, VLMPruner(), BUDGET):
            expected = model.model(**inputs).last_hidden_state
        with attach(model.model, PROCESSOR, VLMPruner(), BUDGET):
            assert torch.equal(model.model(**inputs).last_hidden_state, expected)


@pytest.mark.parametrize(
    "make", [make_deep_llava, pytest.param(make_deep_qwen, marks=needs_encoded_images())]
)
def test_only_one_at_a_time(make: Any) -> None:
    model = make()
    for one, other in ((VLMPruner(), make_pruner()), (make_pruner(), VLMPruner())):
        for second in (one, other):
            with (
                attach(model, PROCESSOR, one, BUDGET),
                pytest.raises(ValueError, match="attached already"),
            ):
                attach(model, PROCESSOR, second, BUDGET)
        assert "forward" not in vars(model)


@pytest.mark.parametrize("layer", [4, 7])
def test_a_layer_that_is_not_there(layer: int) -> None:
    with pytest.raises(ValueError, match=f"layer: expected 1 to 3, got {layer}"):
        attach(make_deep_llava(), PROCESSOR, VLMPruner(layer=layer), BUDGET)
    with pytest.raises(ValueError, match="layer: expected 1 to 1, got 2"):
        attach(make_llava(), PROCESSOR, VLMPruner(), BUDGET)


def test_refused_models() -> None:
    with pytest.raises(ValueError, match="grid: needed by VLMPruner"):
        attach(make_llava_next(), make_next_processor(), VLMPruner(), BUDGET)
    windows = make_deep_qwen(use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(ValueError, match="full attention in every layer"):
        attach(windows, None, VLMPruner(), BUDGET)


def test_a_selector_that_needs_unavailable_fields() -> None:
    selector = VLMPruner()
    selector.needs = frozenset({"cls_attention"})
    with pytest.raises(ValueError, match="cls_attention: needed by VLMPruner"):
        attach(make_deep_llava(), PROCESSOR, selector, BUDGET)


def test_refused_calls() -> None:
    model, inputs = make_deep_llava(), prepare(PROCESSOR)
    shifted = inputs["input_ids"].flip(0)
    mask = torch.nn.attention.flex_attention.create_block_mask(
        lambda b, h, q, k: q >= k, None, None, 40, 40, device="cpu"
    )
    with attach(model, PROCESSOR, VLMPruner(), BUDGET):
        with pytest.raises(ValueError, match="which are no whole images"):
            model(input_ids=shifted[:2], pixel_values=inputs["pixel_values"])
        with pytest.raises(NotImplementedError, match="whose masks are tensors; got BlockMask"):
            model(**inputs | {"attention_mask": mask})


@needs_encoded_images()
def test_refused_calls_with_encoded_images() -> None:
    model, inputs = make_deep_llava(), prepare(PROCESSOR)
    with torch.no_grad():
        stock = model.model.get_image_features(pixel_values=inputs["pixel_values"])
    text = {name: value for name, value in inputs.items() if name != "pixel_values"}
    embeddings = model.get_input_embeddings()(text["input_ids"])
    with attach(model, PROCESSOR, VLMPruner(), BUDGET):
        features = model.model.get_image_features(pixel_values=inputs["pixel_values"])
        given = {"image": features}
        model(**text, mm_encoder_outputs=given)
        with pytest.raises(ValueError, match="mm_encoder_outputs: expected what get_image"):
            model(**text, mm_encoder_outputs={"image": stock})
        with pytest.raises(ValueError, match="both pixel_values and mm_encoder_outputs"):
            model(**inputs, mm_encoder_outputs=given)
        with pytest.raises(ValueError, match="input_ids: needed to find the image tokens"):
            model(inputs_embeds=embeddings, mm_encoder_outputs=given)


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("make", [make_deep_llava, make_deep_qwen])
@torch.no_grad()
def test_the_encoder_runs_once_a_prompt(
    make: Any, by_name: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the model takes its images encoded, or finds them on the pixels."""
    model, runs = make(), []
    encoder = model.model.visual if make is make_deep_qwen else model.model.vision_tower
    encoder.register_forward_hook(lambda *_: runs.append(1))
    inputs = prepare(PROCESSOR)
    if make is make_deep_qwen:
        inputs = make_batch([(f"{PHOTO} what is this ?", [make_photo(4, 4)])])
    with attach(model, PROCESSOR, VLMPruner(), BUDGET):
        expected = model(**inputs).logits
    if not by_name:
        monkeypatch.setattr(decoder, "takes_outputs", lambda _: False)
    with attach(model, PROCESSOR, VLMPruner(), BUDGET):
        assert torch.equal(model(**inputs).logits, expected)
    assert len(runs) == 2 and not vars(inputs["pixel_values"])


@pytest.mark.parametrize("part", ["layer", "attention"])
@pytest.mark.parametrize("make", [make_deep_llava, make_deep_qwen])
def test_layers_that_are_not_known_are_refused(make: Any, part: str) -> None:
    model = make()
    layer = model.model.language_model.layers[3]
    changed = layer if part == "layer" else layer.self_attn
    changed.forward = lambda hidden_states, past_key_values=None, **others: hidden_states
    before = dict(vars(model)), dict(vars(layer))
    versions = f"5.16 to 5.24, .* of transformers {re.escape(transformers.__version__)} takes"
    with pytest.raises(ValueError, match=versions):
        attach(model, PROCESSOR, VLMPruner(), BUDGET)
    assert (dict(vars(model)), dict(vars(layer))) == before


def test_a_language_model_of_another_kind() -> None:
    changes = {"hidden_size": 48, "num_hidden_layers": 3, "sliding_window": 8}
    text = transformers.MistralConfig(**make_text_config().to_dict() | changes)
    with pytest.raises(ValueError, match="full attention in every layer"):
        attach(make_llava(text_config=text), PROCESSOR, VLMPruner(), BUDGET)
    text.sliding_window = None
    model = make_llava(text_config=text)
    inputs = prepare(PROCESSOR, ["<image> red ?"], PHOTOS[:1])
    with attach(model, PROCESSOR, VLMPruner(), BUDGET):
        expected = generate(model, inputs, use_cache=False)
        assert torch.equal(generate(model, inputs), expected)


def test_gradients_are_the_same_with_checkpoints() -> None:
    model, inputs = make_deep_llava(), prepare(PROCESSOR)
    weight = model.model.language_model.layers[0].mlp.up_proj.weight
    found = []
    with attach(model, PROCESSOR, VLMPruner(), BUDGET):
        for checkpoints in (False, True):
            if checkpoints:
                model.train()
                model.gradient_checkpointing_enable()
            model.zero_grad()
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
            found.append(weight.grad.clone())
    assert torch.equal(*found) and found[0].abs().sum() > 0


def test_decoding_compiles_into_one_graph() -> None:
    model, inputs = make_deep_llava(), prepare(PROCESSOR)
    compiled = transformers.CompileConfig(backend="eager", fullgraph=True)
    # As generate does by itself on CUDA.
    compiled._compile_all_devices = True
    with attach(model, PROCESSOR, VLMPruner(), BUDGET):
        expected = generate(model, inputs)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        static = {"cache_implementation": "static", "compile_config": compiled}
        assert torch.equal(generate(model, inputs, **static), expected)
        stats = dict(torch._dynamo.utils.counters["stats"])
        assert stats["unique_graphs"] == 1
        assert not torch._dynamo.utils.counters["graph_break"]
