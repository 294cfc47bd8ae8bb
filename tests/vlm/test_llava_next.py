"""LLaVA-NeXT with a selector attached, against the same computed by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("tokenizers")

from ocvtp_kernels.selectors.at_random import RandomSelector
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from ocvtp_kernels.vlm.llava_next.layout import lay_out
from tests.vlm.models import WIDTH, make_pruner
from tests.vlm.models_next import make_llava_next, make_next_processor
from tests.vlm.next_by_hand import (
    PATCHES,
    PHOTOS,
    LoudestSelector,
    attach,
    check_logits,
    embed_by_hand,
    generate,
    generate_by_hand,
    grid_by_hand,
    make_batch,
)


@pytest.fixture(scope="module")
def model() -> Any:
    return make_llava_next()


@pytest.fixture
def processor() -> Any:
    return make_next_processor()


def count_tokens(model: Any, batch: Any) -> list[int]:
    """Of each image, newlines not counted."""
    sizes = batch["image_sizes"].tolist()
    return [lay_out(model.model.config, *size).tokens.shape[0] for size in sizes]


@pytest.mark.parametrize("photo", range(len(PHOTOS)))
def test_the_layout_is_the_grid_without_its_padding(model: Any, photo: int) -> None:
    width, height, across, down, _, _ = PHOTOS[photo]
    layout = lay_out(model.model.config, height, width)
    grid = grid_by_hand(photo)
    packed = list(range(PATCHES))
    for line in grid:
        packed += [*line, -1]
    mine = [-1] * layout.num_packed
    for token, position in zip(layout.tokens.tolist(), layout.positions.tolist(), strict=True):
        mine[position] = token
    assert layout.num_crops == 1 + across * down
    assert mine == packed
    assert layout.newlines.tolist() == [i for i, token in enumerate(packed) if token < 0]
    assert layout.tokens.tolist() == sorted(layout.tokens.tolist())


def test_layouts_of_real_sizes_have_the_processors_counts() -> None:
    from transformers import LlavaNextConfig, LlavaNextProcessor
    from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

    config = LlavaNextConfig()
    inner = SimpleNamespace(config=config)
    inner.pack_image_features = LlavaNextModel.pack_image_features.__get__(inner)
    counter = SimpleNamespace(
        patch_size=14,
        num_additional_image_tokens=0,
        image_processor=SimpleNamespace(image_grid_pinpoints=config.image_grid_pinpoints),
    )
    counter._get_unpadded_features = LlavaNextProcessor._get_unpadded_features.__get__(counter)
    for height, width in [(480, 640), (640, 427), (336, 336), (1411, 1411), (100, 999), (37, 41)]:
        expected = LlavaNextProcessor._get_number_of_features(counter, height, width, 336, 336)
        assert lay_out(inner.config, height, width).num_packed == expected


@pytest.mark.parametrize("newlines", ["drop", "all"])
def test_keeping_all_is_bit_identical(model: Any, processor: Any, newlines: str) -> None:
    batch = make_batch(processor)
    with torch.no_grad():
        logits = model(**batch).logits
    tokens = generate(model, batch)
    with attach(model, processor, 10_000, newlines=newlines) as handle:
        again = make_batch(processor)
        assert torch.equal(again["input_ids"], batch["input_ids"])
        with torch.no_grad():
            assert torch.equal(model(**again).logits, logits)
        assert torch.equal(generate(model, again), tokens)
        sizes = [
            lay_out(model.model.config, *size).tokens.shape[0]
            for size in batch["image_sizes"].tolist()
        ]
        assert [len(ids) for ids in handle.last.ids] == sizes


@pytest.mark.parametrize("newlines", ["drop", "all"])
@pytest.mark.parametrize("budget", [1, 7, 50, 71])
def test_pruned_is_what_it_is_by_hand(
    model: Any, processor: Any, newlines: str, budget: int
) -> None:
    with attach(model, processor, budget, newlines=newlines, positions="consecutive") as handle:
        batch = make_batch(processor)
        embeds, kept = embed_by_hand(model, batch, budget, newlines)
        check_logits(model, batch, embeds)
        assert [ids.tolist() for ids in handle.last.ids] == kept
        tokens = generate(model, batch, 4)
        assert torch.equal(tokens, generate_by_hand(model, embeds, batch["attention_mask"], 4))


@pytest.mark.parametrize(
    ("kind", "changes"), [("siglip", {}), ("clip", {"vision_feature_layer": [-3, -2]})]
)
def test_other_towers_and_layers(kind: str, changes: Any) -> None:
    model, processor = make_llava_next(kind, **changes), make_next_processor(kind)
    selector = LoudestSelector(needs_importance=True)
    with attach(model, processor, 7, selector, positions="consecutive") as handle:
        batch = make_batch(processor)
        embeds, kept = embed_by_hand(model, batch, 7)
        check_logits(model, batch, embeds)
        assert [ids.tolist() for ids in handle.last.ids] == kept


@pytest.mark.parametrize("budget", [1, 7, 40])
def test_a_prompt_has_budget_placeholders_an_image(model: Any, processor: Any, budget: int) -> None:
    token = model.config.image_token_id
    with attach(model, processor, budget):
        batch = make_batch(processor)
        assert (batch["input_ids"] == token).sum(1).tolist() == [budget, 2 * budget, 0, budget]
    with attach(model, processor, budget, newlines="all"):
        batch = make_batch(processor)
        rows = [len(grid_by_hand(photo)) for photo in range(4)]
        counts = [budget + rows[0], 2 * budget + rows[1] + rows[2], 0, budget + rows[3]]
        assert (batch["input_ids"] == token).sum(1).tolist() == counts


@pytest.mark.parametrize("newlines", ["drop", "all"])
def test_counts_are_known_without_pixels(model: Any, processor: Any, newlines: str) -> None:
    sizes = [(height, width) for width, height, *_ in PHOTOS]
    with attach(model, processor, 50, newlines=newlines):
        counts = processor._get_num_multimodal_tokens(image_sizes=sizes)
        batch = make_batch(processor, ["<image>"] * len(PHOTOS))
        placeholders = (batch["input_ids"] == model.config.image_token_id).sum(1)
        assert counts["num_image_tokens"] == placeholders.tolist()


def test_savings_change_no_bit(model: Any, processor: Any) -> None:
    logits = []
    for savings in (True, False):
        with attach(model, processor, 7, savings=savings), torch.no_grad():
            layer = model.model.vision_tower.get_submodule("encoder.layers.3.mlp")
            runs: list[int] = []
            with layer.register_forward_hook(lambda *_, runs=runs: runs.append(1)):
                logits.append(model(**make_batch(processor)).logits)
            assert len(runs) == (0 if savings else 1)
    assert torch.equal(*logits)


def test_only_kept_tokens_go_through_the_projector(model: Any, processor: Any) -> None:
    rows: list[int] = []
    hook = model.model.multi_modal_projector.register_forward_hook(
        lambda _module, args, _output: rows.append(args[0].shape[:-1].numel())
    )
    with hook, attach(model, processor, 7, newlines="all"):
        generate(model, make_batch(processor))
    assert sum(rows) == 7 * 4


def test_a_selector_sees_all_crops_of_an_image_as_one_sequence(model: Any, processor: Any) -> None:
    selector = LoudestSelector(needs_importance=True)
    with attach(model, processor, 7, selector):
        batch = make_batch(processor)
        model(**batch)
    sizes = [
        lay_out(model.model.config, *size).tokens.shape[0] for size in batch["image_sizes"].tolist()
    ]
    # Photos 1 to 3 have as many tokens, and so are chosen from together.
    assert sizes == [48, 64, 64, 64]
    seen = [(*inputs.reference_tokens.shape,) for inputs in selector.seen]
    assert seen == [(1, 48, WIDTH), (3, 64, WIDTH)]
    for inputs in selector.seen:
        assert inputs.importance.shape == inputs.reference_tokens.shape[:2]
        assert inputs.final_tokens.shape == inputs.reference_tokens.shape
        assert inputs.valid is None


@torch.no_grad()
def keep(model: Any, batch: Any) -> None:
    model.model.get_image_features(batch["pixel_values"], batch["image_sizes"])


@pytest.mark.parametrize("kind", ["pruner", "random"])
def test_any_selector_keeps_the_budget_and_an_image_alone_the_same(
    model: Any, processor: Any, kind: str
) -> None:
    selector = PrunerSelector(make_pruner()) if kind == "pruner" else RandomSelector(0)
    with attach(model, processor, 9, selector) as handle:
        keep(model, make_batch(processor))
        together = handle.last.ids
        assert all(len(ids.unique()) == len(ids) == 9 for ids in together)
        for photo, ids in enumerate(together):
            if kind == "pruner":
                keep(model, make_batch(processor, ["<image>"], photo))
                assert torch.equal(handle.last.ids[0], ids)
            grid = {token for line in grid_by_hand(photo) for token in line} | set(range(PATCHES))
            assert set(ids.tolist()) <= grid
