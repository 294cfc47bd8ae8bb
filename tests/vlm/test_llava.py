from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels.selectors.at_random import RandomSelector
from ocvtp_kernels.selectors.interface import SelectorInputs, reads_of, run_selector
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from ocvtp_kernels.vlm.attach import attach
from tests.vlm.models import (
    BUDGET,
    DEPTH,
    IMAGE_ID,
    NEW,
    NUM_PATCHES,
    PHOTOS,
    PROMPTS,
    SELECTORS,
    generate,
    make_llava,
    make_llava_processor,
    make_pruner,
    prepare,
)

KIND = pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "dinov2_with_registers"])
SELECTOR = pytest.mark.parametrize("selector", SELECTORS)


@torch.no_grad()
def features_by_hand(model: Any, pixels: Tensor, choose: Any, budget: int = BUDGET) -> Any:
    """Whole tower, eager attention weights, gather, project: all that attach does, by hand."""
    inner = model.model
    tower = copy.deepcopy(inner.vision_tower)
    tower.set_attn_implementation("eager")
    # Weights from eager attention; states from the attention the model runs with.
    attentions = tower(pixels, output_attentions=True).attentions
    states = inner.vision_tower(pixels, output_hidden_states=True).hidden_states
    layer = model.config.vision_feature_layer
    cut = 1 if model.config.vision_feature_select_strategy == "default" else 0
    importance = attentions[layer].mean(dim=(1, 2))[:, cut:]
    inputs = SelectorInputs(states[DEPTH // 3 + 1][:, cut:], states[layer][:, cut:], importance)
    if "importance" not in reads_of(choose):
        inputs = inputs._replace(importance=None)
    ids = run_selector(choose, inputs, budget).ids
    kept = torch.stack([inputs.final_tokens[image, ids[image]] for image in range(len(ids))])
    return ids, inner.multi_modal_projector(kept)


@torch.no_grad()
def logits_by_hand(model: Any, inputs: Any, features: Tensor) -> Tensor:
    """The language model on embeddings into which the features were written row by row."""
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).clone()
    embeddings[inputs["input_ids"] == IMAGE_ID] = features.flatten(0, 1)
    hidden = model.model.language_model(
        inputs_embeds=embeddings, attention_mask=inputs["attention_mask"]
    ).last_hidden_state
    return model.lm_head(hidden)


@KIND
@pytest.mark.parametrize("budget", [NUM_PATCHES + 4, 1000])
def test_keeping_all_changes_no_bit(kind: str, budget: int) -> None:
    model, processor = make_llava(kind), make_llava_processor(kind)
    if kind == "dinov2_with_registers":
        # transformers' own count has no registers in it; its processor counts them here.
        processor.num_additional_image_tokens = 5
    inputs = prepare(processor)
    with torch.no_grad():
        logits = model(**inputs).logits
    ids = generate(model, inputs)
    with attach(model, processor, RandomSelector(), budget) as handle:
        ours = prepare(processor)
        assert torch.equal(ours["input_ids"], inputs["input_ids"])
        with torch.no_grad():
            assert torch.equal(model(**ours).logits, logits)
        assert torch.equal(generate(model, ours), ids)
        every = NUM_PATCHES + (4 if kind == "dinov2_with_registers" else 0)
        assert torch.equal(handle.last.ids, torch.arange(every).expand(3, -1))


@SELECTOR
@pytest.mark.parametrize("savings", [True, False])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_pruned_equals_gathering_by_hand(selector: str, savings: bool, kind: str) -> None:
    model, processor = make_llava(kind), make_llava_processor(kind)
    choose = SELECTORS[selector]()
    with attach(
        model, processor, choose, BUDGET, savings=savings, positions="consecutive"
    ) as handle:
        inputs = prepare(processor)
        assert (inputs["input_ids"] == IMAGE_ID).sum(1).tolist() == [BUDGET, 2 * BUDGET, 0]
        with torch.no_grad():
            logits = model(**inputs).logits
        last = handle.last
        assert handle.last.times == {}
    ids, features = features_by_hand(model, inputs["pixel_values"], choose)
    assert torch.equal(last.ids, ids)
    expected = logits_by_hand(model, inputs, features)
    if selector == "rows" or (selector == "random" and savings):
        # Fewer rows in a product may be summed in another order.
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(logits, expected)


@KIND
def test_generates_as_without_a_cache_by_hand(kind: str) -> None:
    model, processor = make_llava(kind), make_llava_processor(kind)
    choose = PrunerSelector(make_pruner())
    with attach(model, processor, choose, BUDGET, positions="consecutive"):
        inputs = prepare(processor)
        out = generate(model, inputs)
    _, features = features_by_hand(model, inputs["pixel_values"], choose)
    grown = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    for _ in range(NEW):
        logits = logits_by_hand(model, grown, features)[:, -1]
        logits[:, [2, IMAGE_ID]] = -torch.inf
        step = logits.argmax(-1, keepdim=True)
        grown["input_ids"] = torch.cat([grown["input_ids"], step], dim=1)
        mask = grown["attention_mask"]
        grown["attention_mask"] = torch.cat([mask, torch.ones_like(step)], dim=1)
    assert torch.equal(out, grown["input_ids"])


@pytest.fixture
def attached() -> Any:
    model, processor = make_llava(), make_llava_processor()
    with attach(model, processor, make_pruner(), BUDGET) as handle:
        yield model, processor, handle


def test_an_image_keeps_the_same_tokens_alone_or_in_a_batch(attached: Any) -> None:
    model, processor, handle = attached
    generate(model, prepare(processor))
    together = handle.last.ids
    for index, photo in enumerate(PHOTOS):
        generate(model, prepare(processor, [PROMPTS[0]], [photo]))
        assert torch.equal(handle.last.ids[0], together[index])


@pytest.mark.parametrize("layer", [-3, [-3, -2]])
def test_the_layer_and_strategy_of_a_call_win(layer: Any) -> None:
    config = {"vision_feature_layer": layer}
    model, processor = make_llava(**config), make_llava_processor()
    choose = RandomSelector(2)
    with attach(model, processor, choose, BUDGET):
        inputs = prepare(processor)
        with torch.no_grad():
            expected = model(**inputs).logits
            model.config.vision_feature_layer = [-2] * (len(layer) if layer != -3 else 1)
            ours = model(**inputs, vision_feature_layer=layer).logits
    assert torch.equal(ours, expected)


def test_cls_is_a_candidate_where_the_model_takes_it() -> None:
    model = make_llava(vision_feature_select_strategy="full")
    processor = make_llava_processor()
    processor.vision_feature_select_strategy = "full"
    with attach(model, processor, RandomSelector(1), NUM_PATCHES) as handle:
        inputs = prepare(processor)
        assert (inputs["input_ids"] == IMAGE_ID).sum(1).tolist() == [16, 32, 0]
        generate(model, inputs)
        assert handle.last.ids.max() == NUM_PATCHES
    with attach(model, processor, RandomSelector(), NUM_PATCHES + 1):
        assert (prepare(processor)["input_ids"] == IMAGE_ID).sum(1).tolist() == [17, 34, 0]


def test_features_keep_their_signature_and_form(attached: Any) -> None:
    model, processor, _ = attached
    stock = inspect.signature(make_llava().model.get_image_features)
    assert inspect.signature(model.model.get_image_features) == stock
    pixels = prepare(processor)["pixel_values"]
    with torch.no_grad():
        features = model.get_image_features(pixels)
        assert [list(f.shape) for f in features.pooler_output] == [[BUDGET, 48]] * 3
        plain = model.get_image_features(pixels, return_dict=False)
    assert isinstance(plain, tuple) and torch.equal(plain[0][2], features.pooler_output[2])
    counted = processor._get_num_multimodal_tokens(image_sizes=[(40, 50), (56, 56)])
    assert counted.num_image_tokens == [BUDGET, BUDGET]


def test_gradients_reach_the_projector(attached: Any) -> None:
    model, processor, _ = attached
    model(**prepare(processor)).logits.sum().backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
