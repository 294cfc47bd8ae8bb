"""Training-free baselines attached: their inputs are those of the encoder's own layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import ocvtp_kernels as ocvtp
from ocvtp_kernels import attach, make_selector
from ocvtp_kernels.selectors.interface import place_of
from ocvtp_kernels.selectors.registry import METHODS
from tests.vlm.models import BUDGET, DEPTH, generate, make_llava, make_llava_processor, prepare
from tests.vlm.models_next import make_llava_next, make_next_processor
from tests.vlm.models_qwen import PHOTO, make_model, make_photo, needs_encoded_images
from tests.vlm.models_qwen import make_batch as make_qwen_batch
from tests.vlm.next_by_hand import make_batch

OPTIONS: dict[str, dict[str, Any]] = {
    "vlm-pruner": {"place": "encoder"},
    "tome": {"place": "encoder"},  # inside the tower: test_tome
}
# TRIM needs the question, which no encoder has. Random is in test_llava, and what drops tokens
# inside the decoder has no inputs of the encoder's.
ATTACHED = [
    name
    for name in METHODS
    if name not in ("trim", "random")
    and place_of(make_selector(name, **OPTIONS.get(name, {}))) != "decoder"
]
NEEDS_CLS = (
    *("visionzip", "vispruner", "fastervlm", "scope", "prumerge", "prumerge+"),
    *("id-selection", "holov"),
)


@torch.no_grad()
def features_by_hand(model: Any, pixels: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Attention weights of eager layers, `select`, gather and project."""
    inner = model.model
    tower = copy.deepcopy(inner.vision_tower)
    tower.set_attn_implementation("eager")
    attentions = tower(pixels, output_attentions=True).attentions
    states = inner.vision_tower(pixels, output_hidden_states=True).hidden_states
    layer = tower.encoder.layers[DEPTH - 2]
    keys = layer.self_attn.k_proj(layer.layer_norm1(states[DEPTH - 2]))
    deep, shallow = attentions[DEPTH - 2], attentions[DEPTH // 3]
    tokens = states[-2][:, 1:]
    options = dict(OPTIONS.get(method, {}))
    if method in ("visionzip", "tome"):
        options["heads"] = tower.config.num_attention_heads
    done = place_of(make_selector(method, **options)) == "projector"
    if done:
        tokens = inner.multi_modal_projector(tokens)
    selected = ocvtp.select(
        tokens,
        BUDGET,
        method,
        keys=keys[:, 1:],
        cls_attention=deep[:, :, 0, 1:].mean(dim=1),
        importance=deep.mean(dim=(1, 2))[:, 1:],
        shallow_importance=shallow.mean(dim=(1, 2))[:, 1:],
        **options,
    )
    kept = selected.tokens
    assert kept is not None
    return selected.ids, kept if done else inner.multi_modal_projector(kept)


@pytest.mark.parametrize("method", ATTACHED)
@torch.no_grad()
def test_attached_equals_select_by_hand(method: str) -> None:
    model, processor = make_llava(), make_llava_processor()
    inputs = prepare(processor)
    ids, expected = features_by_hand(model, inputs["pixel_values"], method)
    selector = make_selector(method, **OPTIONS.get(method, {}))
    with attach(model, processor, selector, BUDGET) as handle:
        features = model.model.get_image_features(inputs["pixel_values"]).pooler_output
        assert handle.last is not None
        assert torch.equal(handle.last.ids, ids)  # type: ignore[arg-type]
        torch.testing.assert_close(torch.stack(list(features)), expected, rtol=1e-4, atol=1e-5)
        pruned = prepare(processor)
        assert generate(model, pruned).shape[0] == len(pruned["input_ids"])


@pytest.mark.parametrize("method", ATTACHED)
def test_a_tower_without_cls_token_names_what_it_lacks(method: str) -> None:
    model, processor = make_llava("siglip"), make_llava_processor("siglip")
    selector = make_selector(method, **OPTIONS.get(method, {}))
    if method in NEEDS_CLS:
        with pytest.raises(ValueError, match="cls_attention: needed by"):
            attach(model, processor, selector, BUDGET)
        return
    with attach(model, processor, selector, BUDGET):
        inputs = prepare(processor)
        assert generate(model, inputs).shape[0] == len(inputs["input_ids"])


def test_the_question_is_not_available() -> None:
    with pytest.raises(ValueError, match="text: needed by TRIM"):
        attach(make_llava(), make_llava_processor(), make_selector("trim"), BUDGET)


@pytest.mark.parametrize("method", ["visionzip", "hiprune", "vlm-pruner", "holov", "dart"])
def test_a_selector_that_may_fall_short_is_refused(method: str) -> None:
    selector = make_selector(method, as_published=True)
    with pytest.raises(ValueError, match="keeps exactly the budget"):
        attach(make_llava(), make_llava_processor(), selector, BUDGET)


@pytest.mark.parametrize("method", ["id-selection", "holov"])
@torch.no_grad()
def test_importance_stands_for_the_attention_of_a_cls_token(method: str) -> None:
    model, processor = make_llava("siglip"), make_llava_processor("siglip")
    with attach(model, processor, make_selector(method, score="importance"), BUDGET) as handle:
        inputs = prepare(processor)
        assert generate(model, inputs).shape[0] == len(inputs["input_ids"])
        assert handle.last is not None
        assert all(len(set(ids.tolist())) == BUDGET for ids in handle.last.ids)


@pytest.mark.parametrize("method", ["idpruner", "id-selection", "holov"])
def test_no_tower_has_a_score_of_the_callers(method: str) -> None:
    with pytest.raises(ValueError, match="relevance: needed by"):
        selector = make_selector(method, score="relevance")
        attach(make_llava(), make_llava_processor(), selector, BUDGET)


@pytest.mark.parametrize(
    "method",
    [
        *("divprune", "vispruner", "scope", "cdpruner", "prumerge", "idpruner", "id-selection"),
        *("holov", "apet"),
    ],
)
@torch.no_grad()
def test_next_selects_over_all_crops(method: str) -> None:
    model, processor = make_llava_next(), make_next_processor()
    with attach(model, processor, make_selector(method), 9) as handle:
        batch = make_batch(processor)
        features = model.model.get_image_features(batch["pixel_values"], batch["image_sizes"])
        assert handle.last is not None
        for ids, rows in zip(handle.last.ids, features.pooler_output, strict=True):
            assert len(ids.unique()) == len(ids) == len(rows) == 9


def test_next_has_no_grid() -> None:
    model, processor = make_llava_next(), make_next_processor()
    for method in ("hiprune", "vlm-pruner"):
        selector = make_selector(method, **OPTIONS.get(method, {}))
        with pytest.raises(ValueError, match="grid: needed by"):
            attach(model, processor, selector, 9)


@needs_encoded_images()
@torch.no_grad()
def test_qwen_selects_among_merged_tokens() -> None:
    model = make_model()
    batch = make_qwen_batch([(PHOTO, [make_photo(10, 6)]), (PHOTO, [make_photo(8, 8)])])
    with attach(model, None, make_selector("divprune"), 7) as handle:
        model.generate(**batch, max_new_tokens=2, do_sample=False)
        assert handle.last is not None
        kept = list(handle.last.ids)
    features = model.model.get_image_features(batch["pixel_values"], batch["image_grid_thw"])
    for ids, tokens in zip(kept, features.pooler_output, strict=True):
        assert torch.equal(ids, ocvtp.select(tokens[None], 7, "divprune").ids[0])
