"""What InternVL alone has: tiles of an unknown number, pixel shuffle, norms of its tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("tokenizers")

from ocvtp_kernels import attach, make_selector
from ocvtp_kernels.selectors.interface import SelectorInputs
from ocvtp_kernels.vlm.columns.tiles import find_runs
from ocvtp_kernels.vlm.tower_encoder import load_tower_encoder
from ocvtp_kernels.vlm.units import join_units
from tests.vlm.families import ByNorm, answer, generate, process
from tests.vlm.families._suite import CLOSE, DETAILS, NEW
from tests.vlm.families._tiles import SIZES, mean_units
from tests.vlm.families.internvl import ENTRY, see
from tests.vlm.models import DEPTH, HEADS, IMAGE_ID, WIDTH, make_photo
from tests.vlm.models_tiles import UNITS, make_internvl, make_internvl_processor

pytestmark = [pytest.mark.usefixtures("one_thread"), *ENTRY.marks]
VARIANTS = {
    "a norm": ({"use_mean_pooling": False}, -1),
    "a norm that is not reached": ({"use_mean_pooling": False}, -2),
    "norms of queries and keys": ({"use_qk_norm": True, "norm_type": "rms_norm"}, -1),
}


@pytest.fixture(scope="module")
def processor() -> Any:
    return make_internvl_processor()


def make_variant(name: str) -> Any:
    vision, layer = VARIANTS[name]
    model = make_internvl(**vision)
    model.config.vision_feature_layer = layer
    tower = model.model.vision_tower
    for part in [tower, *tower.modules()]:
        for path in ("layernorm", "q_norm", "k_norm"):
            weight = getattr(getattr(part, path, None), "weight", None)
            if weight is not None:  # of ones, a norm that is left out would be hard to see
                weight.data = torch.linspace(0.2, 3, len(weight))
    return model


class Reading:
    """Keeps the first tokens, and what it was given."""

    needs = frozenset({"final_tokens", "importance", "shallow_importance", "cls_attention", "keys"})

    def __call__(self, inputs: SelectorInputs, budget: int) -> torch.Tensor:
        self.inputs = inputs
        return torch.arange(budget).repeat(len(inputs.final_tokens), 1)


@pytest.mark.parametrize("side", [2, 4, 6, 10])
def test_units_are_those_of_the_models_pixel_shuffle(side: int) -> None:
    tokens = torch.randn(3, side**2, 5)
    grid = tokens.view(3, side, side, 5)
    shuffled = make_internvl().model.pixel_shuffle(grid, 0.5)
    assert torch.equal(join_units(tokens, 2), shuffled.flatten(1, 2))


@pytest.mark.parametrize("variant", VARIANTS)
def test_towers_of_other_norms_are_as_by_hand(variant: str, processor: Any) -> None:
    model, [row] = make_variant(variant), ENTRY.rows(["red {} what ?"])
    batch = process(processor, [row])
    for selector in (ByNorm(), ByNorm("final_tokens")):
        with attach(model, processor, selector, 5), torch.no_grad():
            output = generate(ENTRY, model, batch, **DETAILS)
            tokens, logits = answer(ENTRY, model, see(model, row, 5).line)
        assert output.sequences[0, -NEW:].tolist() == tokens
        torch.testing.assert_close(torch.cat(output.logits), logits, **CLOSE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_fields_are_the_mean_of_a_units_patches(variant: str, processor: Any) -> None:
    model, photo = make_variant(variant), make_photo(0, SIZES[0])
    batch = process(processor, [("<image> ?", [photo])])
    with attach(model, processor, reading := Reading(), 5), torch.no_grad():
        model(**batch)
    inner, layer = model.model, model.config.vision_feature_layer % (DEPTH + 1) - 1
    inner.vision_tower.set_attn_implementation("eager")
    taken: dict[str, Any] = {}

    def take_projected(_part: Any, args: Any) -> None:
        taken["projected"] = args[0]

    def take_keys(_part: Any, _args: Any, output: Any) -> None:
        taken["keys"] = output

    hooks = [
        inner.multi_modal_projector.register_forward_pre_hook(take_projected),
        inner.vision_tower.encoder.layer[layer].attention.k_norm.register_forward_hook(take_keys),
    ]
    with torch.no_grad():
        output = inner.vision_tower(batch["pixel_values"], output_attentions=True)
        inner.get_image_features(batch["pixel_values"])
    for hook in hooks:
        hook.remove()
    received = [attention.mean(1) for attention in output.attentions]
    expected = {
        "importance": mean_units(received[layer].mean(1)[:, 1:, None])[:, 0],
        "shallow_importance": mean_units(received[DEPTH // 3].mean(1)[:, 1:, None])[:, 0],
        "cls_attention": mean_units(received[layer][:, 0, 1:, None])[:, 0],
        "keys": mean_units(taken["keys"][:, 1:]),
        "final_tokens": taken["projected"].flatten(0, 1),
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(reading.inputs, name)[0], value, rtol=1e-4, atol=1e-5)
    assert reading.inputs.num_heads == HEADS and reading.inputs.keys is not None
    assert reading.inputs.keys.shape[-1] == WIDTH


def test_runs_of_placeholders() -> None:
    is_image = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
    assert find_runs(is_image) == [(0, 1, 2), (0, 4, 1), (1, 0, 5)]


def test_the_budget_is_of_all_tiles(processor: Any) -> None:
    model, rows = make_internvl(), ENTRY.rows(["{} {} ?", "{} ?"])
    batch = process(processor, rows)
    assert len(batch["pixel_values"]) == 3 + 5 + 1
    with attach(model, processor, ByNorm(), 3) as handle, torch.no_grad():
        model(**batch)
        kept = handle.last.ids
    assert [len(ids) for ids in kept] == [3, 3, 3]
    tiles = [set((ids // UNITS).tolist()) for ids in kept]
    assert max(tiles[0]) < 3 and max(tiles[1]) < 5 and tiles[2] == {0}


def test_frames_of_a_video_are_images(processor: Any) -> None:
    model, frames = make_internvl(), [make_photo(seed, (60, 60)) for seed in range(3)]
    batch = process(processor, [("<image> <image> <image> ?", frames)])
    with attach(model, processor, ByNorm(), 2) as handle, torch.no_grad():
        model(**batch)
        assert [len(ids) for ids in handle.last.ids] == [2, 2, 2]


def test_what_does_not_fit_is_refused(processor: Any) -> None:
    model, photo = make_internvl(), make_photo(0, SIZES[1])
    with pytest.raises(ValueError, match="model: expected one for conditional generation"):
        attach(model.model, processor, ByNorm(), 5)
    with pytest.raises(ValueError, match="positions: expected 'original' for internvl"):
        attach(model, processor, ByNorm(), 5, positions="consecutive")
    with pytest.raises(ValueError, match="merges tokens inside a tower of images of one size"):
        attach(model, processor, make_selector("tome"), 5)
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(ValueError, match=r"^vision_feature_select_strategy: expected 'default'"):
        attach(model, processor, ByNorm(), 5)
    model.config.vision_feature_select_strategy = "default"
    batch = process(processor, [("<image> ?", [photo])])
    for method in (ByNorm(), make_selector("fastv", layer=1)):
        with attach(model, processor, method, 5):
            with pytest.raises(ValueError, match=r"^pixel_values: expected the 5 tiles of the im"):
                model(**batch | {"pixel_values": batch["pixel_values"][:4]})
            cut = {name: batch[name][:, 2:] for name in ("input_ids", "attention_mask")}
            with pytest.raises(
                ValueError, match=r"^input_ids: expected images of whole tiles of 4"
            ):
                model(**batch | cut)


def test_a_photo_is_encoded_as_a_tile(processor: Any, tmp_path: Path) -> None:
    model, photo = make_internvl(), make_photo(0, SIZES[1])
    model.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    encoder = load_tower_encoder(tmp_path)
    encoded = encoder.encode(photo)
    assert encoder.num_tokens == UNITS and encoded.grid == (2, 2)
    assert encoder.width == WIDTH and encoded.picture.size == (56, 56)
    # The whole photo is the last of its tiles.
    tile = process(processor, [("<image> ?", [photo])])["pixel_values"][-1:]
    assert (process(processor, [("<image> ?", [photo])])["input_ids"] == IMAGE_ID).sum() == 5 * 4
    with torch.no_grad():
        states = model.model.vision_tower(tile, output_hidden_states=True).hidden_states
        features = model.model.get_image_features(tile).pooler_output
        projected = model.model.multi_modal_projector(encoded.inputs.final_tokens)
    torch.testing.assert_close(projected, features, rtol=1e-4, atol=1e-4)
    reference = mean_units(states[DEPTH // 3 + 1][:, 1:])
    torch.testing.assert_close(encoded.inputs.reference_tokens[0], reference, rtol=1e-4, atol=1e-4)
