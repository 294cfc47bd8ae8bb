"""ToMe inside the towers of LLaVA-1.5, against a computation token by token."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import attach, make_selector
from ocvtp_kernels.selectors.tome import ToMe, constant_schedule
from tests.vlm.models import (
    DEPTH,
    NUM_PATCHES,
    generate,
    make_llava,
    make_llava_processor,
    prepare,
)
from tests.vlm.models_next import make_llava_next, make_next_processor
from tests.vlm.models_qwen import make_model, needs_encoded_images
from tests.vlm.tome_by_hand import merged_tokens

KINDS = ("clip", "siglip")
TIGHT: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def depth_of(kind: str) -> int:
    return DEPTH - 1 if kind == "clip" else DEPTH


def features_by_hand(
    model: Any, pixels: Tensor, budget: int, kind: str
) -> tuple[list[Tensor], list[list[int]], list[list[int]]]:
    """Projected tokens, ids and groups of each image."""
    prefix = int(kind == "clip")
    merges = list(constant_schedule(budget, NUM_PATCHES, depth_of(kind), prefix))
    tokens, ids, groups = [], [], []
    for image in merged_tokens(model.model.vision_tower, pixels, merges, prefix):
        kept = image[prefix:]
        rows = torch.stack([group.token for group in kept])
        tokens.append(model.model.multi_modal_projector(rows))
        ids.append([group.place - prefix for group in kept])
        row_of = {m - prefix: row for row, group in enumerate(kept) for m in group.members}
        groups.append([row_of[patch] for patch in range(NUM_PATCHES)])
    return tokens, ids, groups


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("budget", [2, 5, 11, 15])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_tower_equals_a_computation_by_hand(kind: str, budget: int, attention: str) -> None:
    model, processor = make_llava(kind), make_llava_processor(kind)
    model.model.vision_tower.set_attn_implementation(attention)
    pixels = prepare(processor)["pixel_values"]
    expected, ids, groups = features_by_hand(model, pixels, budget, kind)
    with attach(model, processor, make_selector("tome"), budget) as handle:
        features = model.model.get_image_features(pixels).pooler_output
        assert handle.last is not None and handle.last.groups is not None
        assert [of.tolist() for of in handle.last.ids] == ids
        assert handle.last.groups.tolist() == groups
        assert handle.last.groups.dtype == torch.int64
    torch.testing.assert_close(torch.stack(list(features)), torch.stack(expected), **TIGHT)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_images_alone_are_as_in_a_batch(kind: str) -> None:
    model, processor = make_llava(kind), make_llava_processor(kind)
    pixels = prepare(processor)["pixel_values"]
    with attach(model, processor, make_selector("tome"), 5) as handle:
        together = model.model.get_image_features(pixels).pooler_output
        assert handle.last is not None and isinstance(handle.last.ids, Tensor)
        ids, groups = handle.last.ids, handle.last.groups
        for image in range(len(pixels)):
            (alone,) = model.model.get_image_features(pixels[image : image + 1]).pooler_output
            torch.testing.assert_close(alone, together[image], **TIGHT)
            assert torch.equal(handle.last.ids[0], ids[image])  # type: ignore[union-attr]
            assert groups is not None and torch.equal(
                handle.last.groups[0],  # type: ignore[index, union-attr]
                groups[image],
            )


@pytest.mark.parametrize("kind", KINDS)
def test_answers_have_the_budget_of_placeholders(kind: str) -> None:
    model, processor = make_llava(kind), make_llava_processor(kind)
    whole = generate(make_llava(kind), prepare(processor))
    with attach(model, processor, make_selector("tome"), 6) as handle:
        again = pickle.loads(pickle.dumps(model))
        inputs = prepare(processor)
        assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 3 * 6
        answers = generate(model, inputs)
        assert handle.last is not None and handle.last.ids[0].shape == (6,)
        assert torch.equal(generate(again, inputs), answers)
        assert torch.equal(generate(copy.deepcopy(model), inputs), answers)
    assert torch.equal(generate(model, prepare(processor)), whole)


@torch.no_grad()
def test_a_budget_of_all_tokens_is_the_model_alone() -> None:
    model, processor = make_llava(), make_llava_processor()
    pixels = prepare(processor)["pixel_values"]
    whole = model.model.get_image_features(pixels).pooler_output
    with attach(model, processor, make_selector("tome"), NUM_PATCHES) as handle:
        same = model.model.get_image_features(pixels).pooler_output
        assert torch.equal(torch.stack(list(same)), torch.stack(list(whole)))
        assert handle.last is not None and handle.last.groups is None


@torch.no_grad()
def test_the_class_token_where_the_model_takes_it() -> None:
    model = make_llava(vision_feature_select_strategy="full")
    processor = make_llava_processor()
    processor.vision_feature_select_strategy = "full"
    pixels = prepare(processor)["pixel_values"]
    merges = list(constant_schedule(5, NUM_PATCHES, DEPTH - 1, 1))
    with attach(model, processor, make_selector("tome"), 6) as handle:
        features = model.model.get_image_features(pixels).pooler_output
        assert handle.last is not None and handle.last.groups is not None
        by_hand = merged_tokens(model.model.vision_tower, pixels, merges, 1)
        for at, groups in enumerate(by_hand):
            rows = torch.stack([group.token for group in groups])
            torch.testing.assert_close(
                features[at], model.model.multi_modal_projector(rows), **TIGHT
            )
            assert handle.last.ids[at].tolist() == [group.place for group in groups]
            assert groups[0].members == [0]
            assert int((handle.last.groups[at] == 0).sum()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_tower(kind: str) -> None:
    model, processor = make_llava(kind), make_llava_processor(kind)
    pixels = prepare(processor)["pixel_values"]
    with attach(model, processor, make_selector("tome"), 5):
        features = model.model.get_image_features(pixels).pooler_output
        torch.stack(list(features)).square().sum().backward()
    weight = model.model.vision_tower.get_parameter(
        "embeddings.patch_embedding.weight"
        if hasattr(model.model.vision_tower, "embeddings")
        else "vision_model.embeddings.patch_embedding.weight"
    )
    assert weight.grad is not None and bool(weight.grad.abs().sum() > 0)


@torch.no_grad()
def test_half_precision() -> None:
    model, processor = make_llava().bfloat16(), make_llava_processor()
    pixels = prepare(processor)["pixel_values"].bfloat16()
    with attach(model, processor, make_selector("tome"), 5) as handle:
        features = model.model.get_image_features(pixels).pooler_output
        assert features[0].dtype == torch.bfloat16 and features[0].shape[0] == 5
        assert handle.last is not None and bool(torch.stack(list(features)).isfinite().all())


@torch.no_grad()
def test_merged_output_of_any_tower() -> None:
    model, processor = make_llava(), make_llava_processor()
    pixels = prepare(processor)["pixel_values"]
    with attach(model, processor, make_selector("tome", place="encoder"), 5) as handle:
        features = model.model.get_image_features(pixels).pooler_output
        assert handle.last is not None and handle.last.groups is not None
        assert features[0].shape[0] == 5 == len(handle.last.groups[0].unique())


def test_refused_where_tokens_cannot_merge() -> None:
    selector = make_selector("tome")
    model, processor = make_llava(), make_llava_processor()
    with pytest.raises(ValueError, match=r"budget: expected at least 2 of 16 tokens.*got 1"):
        attach(model, processor, selector, 1)
    with pytest.raises(ValueError, match="vision_feature_layer: expected one layer"):
        attach(make_llava(vision_feature_layer=[-2, -1]), processor, selector, 5)
    with pytest.raises(ValueError, match='place="encoder" merges its output'):
        attach(make_llava("dinov2"), processor, selector, 5)
    with pytest.raises(ValueError, match='images of one size; for others place="encoder"'):
        attach(make_llava_next(), make_next_processor(), selector, 5)
    model.model.vision_tower.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="attn_implementation 'sdpa' or 'eager'"):
        attach(model, processor, selector, 5)
    model = make_llava()
    layer = model.model.vision_tower.encoder.layers[0]
    layer.forward = layer.forward
    with pytest.raises(ValueError, match="whose forward was changed"):
        attach(model, processor, selector, 5)
    model = make_llava()
    model.gradient_checkpointing_enable()
    model.train()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        attach(model, processor, selector, 5)


@needs_encoded_images()
def test_towers_without_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="keys: needed by ToMe"):
        attach(make_model(), None, make_selector("tome"), 5)


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("depth", [1, 3, 23])
@pytest.mark.parametrize("num_tokens", [1, 2, 7, 16, 576])
def test_schedules_end_at_the_budget(num_tokens: int, depth: int, prefix: int) -> None:
    reached = 0
    for budget in range(1, num_tokens + 1):
        try:
            merges = constant_schedule(budget, num_tokens, depth, prefix)
        except ValueError as error:
            least = int(str(error).split("at least ")[1].split()[0])
            assert budget < least <= num_tokens and not reached
            constant_schedule(least, num_tokens, depth, prefix)
            continue
        reached += 1
        assert len(merges) == depth and num_tokens - sum(merges) == budget
        left = num_tokens
        for merged in merges:
            assert 0 <= merged <= (left + 1) // 2
            left -= merged
        # As many in every layer, but for the last and where tokens are too few.
        assert all(a >= b for a, b in pairwise(merges))
    assert reached


def test_the_published_size_of_a_schedule() -> None:
    merges = constant_schedule(64, 576, 23, 1)
    assert merges == (23,) * 22 + (6,)


def test_places() -> None:
    with pytest.raises(ValueError, match="place: expected one of"):
        ToMe(place="projector")
    with pytest.raises(ValueError, match="heads"):
        ToMe(heads=0)
