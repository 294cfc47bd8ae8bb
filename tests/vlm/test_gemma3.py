"""What Gemma 3 alone has: pan-and-scan, pooled tokens, windows, images in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("tokenizers")

from ocvtp_kernels import attach, make_selector
from ocvtp_kernels.selectors.interface import SelectorInputs
from ocvtp_kernels.training.feature_encoders import make_reference_encoder
from ocvtp_kernels.vlm.tower_encoder import load_tower_encoder
from tests.vlm.families import ByNorm, Line, answer, generate, largest, process
from tests.vlm.families._suite import CLOSE, DETAILS, NEW, TEXTS
from tests.vlm.families._tiles import mean_units
from tests.vlm.families.gemma3 import ENTRY, encode, look, see
from tests.vlm.models import DEPTH, HEADS, IMAGE_ID, WIDTH, make_photo, make_vision_config
from tests.vlm.models_gemma3 import (
    BOI_ID,
    EOI_ID,
    SIDE,
    TOKENS,
    WINDOW,
    make_gemma3,
    make_gemma3_processor,
)

pytestmark = pytest.mark.usefixtures("one_thread")
BUDGET = 5
SCANS = {
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 20,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.5,
}
# Of no crops, of two and of three.
SCANNED = [make_photo(0, (60, 60)), make_photo(1, (120, 60)), make_photo(2, (60, 180))]
CROPS = [0, 2, 3]


@pytest.fixture(scope="module")
def model() -> Any:
    return make_gemma3()


@pytest.fixture(scope="module")
def processor() -> Any:
    return make_gemma3_processor()


def count_runs(tokens: Tensor) -> list[int]:
    """Placeholders of each run, which begin and end as the model's images do."""
    starts, ends = (tokens == BOI_ID).nonzero()[:, 0], (tokens == EOI_ID).nonzero()[:, 0]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        assert (tokens[start + 1 : end] == IMAGE_ID).all()
    assert (tokens == IMAGE_ID).sum() == (ends - starts - 1).sum()
    return [int(length) for length in ends - starts - 1]


@pytest.mark.parametrize("budget", [1, BUDGET, TOKENS - 1, TOKENS, 100])
def test_every_crop_has_a_budget(model: Any, processor: Any, budget: int) -> None:
    texts = ["<boi> <boi> what is this ?", "a <boi>"]
    given = {"text": texts, "images": [SCANNED[:2], SCANNED[2:]], "padding": True, **SCANS}
    whole = processor(return_tensors="pt", **given)
    with attach(model, processor, ByNorm(), budget) as handle, torch.no_grad():
        batch = processor(return_tensors="pt", **given)
        assert torch.equal(batch["pixel_values"], whole["pixel_values"])
        kept = min(budget, TOKENS)
        first, second = CROPS[0] + 1 + CROPS[1] + 1, CROPS[2] + 1
        assert count_runs(batch["input_ids"][0]) == [kept] * first
        assert count_runs(batch["input_ids"][1]) == [kept] * second
        assert torch.equal(batch["token_type_ids"] == 1, batch["input_ids"] == IMAGE_ID)
        # Words stand where they did.
        words, others = (
            tokens[(tokens != IMAGE_ID) & (tokens != 0)]
            for tokens in (batch["input_ids"], whole["input_ids"])
        )
        assert torch.equal(words, others)
        output = generate(ENTRY, model, dict(batch), **DETAILS)
        assert handle.last is not None
        ids = handle.last.ids
    with torch.no_grad():
        states = model.model.vision_tower(
            whole["pixel_values"], output_hidden_states=True
        ).hidden_states
    reference = mean_units(states[DEPTH // 3 + 1]).unflatten(0, (-1, TOKENS))
    assert torch.equal(torch.stack(list(ids)), largest(reference, budget))
    if budget >= TOKENS:
        assert torch.equal(generate(ENTRY, model, dict(whole)), output.sequences)


def test_placeholders_are_counted(model: Any, processor: Any) -> None:
    def count() -> Any:
        return processor._get_num_multimodal_tokens(image_sizes=[(60, 60), (90, 70)])

    before = count()
    assert before.num_image_tokens == [TOKENS] * 2
    for budget in (BUDGET, TOKENS, 100):
        with attach(model, processor, ByNorm(), budget):
            assert count().num_image_tokens == [min(budget, TOKENS)] * 2
            assert count().num_image_patches == before.num_image_patches


def masks_by_hand(tokens: list[int]) -> dict[str, Tensor]:
    """Which columns ``[L, L]`` a column attends to, of a row without padding."""
    images = [number for number, token in enumerate(tokens) if token == BOI_ID]
    # Of a placeholder the image that it is of, of a word nothing.
    image = [
        sum(start < column for start in images) if token == IMAGE_ID else 0
        for column, token in enumerate(tokens)
    ]
    columns = range(len(tokens))
    full = [
        [key <= query or (image[query] > 0 and image[key] == image[query]) for key in columns]
        for query in columns
    ]
    near = [[key > query - WINDOW for key in columns] for query in columns]
    of_full = torch.tensor(full)
    return {"full_attention": of_full, "sliding_attention": of_full & torch.tensor(near)}


@pytest.mark.parametrize("call", ["forward", "generate"])
@torch.no_grad()
def test_masks_are_those_of_the_shortened_prompt(model: Any, processor: Any, call: str) -> None:
    seen: list[dict[str, Tensor]] = []

    def take(_part: Any, _args: Any, given: dict[str, Any]) -> None:
        seen.append(given["attention_mask"])

    language_model = model.model.language_model
    hook = language_model.register_forward_pre_hook(take, with_kwargs=True)
    with attach(model, processor, ByNorm(), BUDGET):
        batch = process(processor, ENTRY.rows(["red {} a cat {} what is this ?"]))
        if call == "forward":
            model(**batch)
        else:
            generate(ENTRY, model, batch, max_new_tokens=1)
    hook.remove()
    tokens = batch["input_ids"][0].tolist()
    expected = masks_by_hand(tokens)
    assert not torch.equal(*expected.values())
    for kind, mask in expected.items():
        assert mask.triu(1).any()
        found = seen[0][kind][0, 0, :, : len(tokens)]
        assert torch.equal(found if found.dtype == torch.bool else found == 0, mask)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
def test_consecutive_positions(model: Any, processor: Any, settings: dict[str, Any]) -> None:
    rows = ENTRY.rows(TEXTS)
    with attach(model, processor, ByNorm(), BUDGET, positions="consecutive"):
        batch = process(processor, rows)
        with torch.no_grad():
            logits = model(**batch).logits
        sequences = generate(ENTRY, model, batch, **settings)[:, -NEW:]
        for index, row in enumerate(rows):
            alone = generate(ENTRY, model, process(processor, [row]), **settings)[:, -NEW:]
            copies = len(alone)
            assert torch.equal(sequences[copies * index : copies * (index + 1)], alone)
    for index, row in enumerate(rows):
        with torch.no_grad():
            line = see(model, row, BUDGET).line
            length = len(line.tokens)
            places = torch.arange(length).expand(3, -1)
            line = Line(line.embeddings, places, line.tokens, [], length)
            torch.testing.assert_close(logits[index, -length:], ENTRY.logits(model, line), **CLOSE)
            if not settings:
                assert sequences[index].tolist() == answer(ENTRY, model, line)[0]


class Reading:
    """Keeps the first tokens, and what it was given."""

    needs = frozenset({"final_tokens", "importance", "shallow_importance", "keys", "grid"})

    def __call__(self, inputs: SelectorInputs, budget: int) -> Tensor:
        self.inputs = inputs
        return torch.arange(budget).repeat(len(inputs.final_tokens), 1)


def test_fields_are_the_mean_of_what_is_pooled(processor: Any) -> None:
    model, photo = make_gemma3(), make_photo(0)
    batch = process(processor, [("<boi> ?", [photo])])
    with attach(model, processor, reading := Reading(), TOKENS - 1), torch.no_grad():
        model.model.get_image_features(batch["pixel_values"])
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")
    taken: dict[str, Tensor] = {}

    def take(name: str) -> Any:
        return lambda _part, _args, output: taken.__setitem__(name, output)

    [keys] = [
        part
        for name, part in tower.named_modules()
        if name.endswith(f"layers.{DEPTH - 1}.self_attn.k_proj")
    ]
    pool = model.model.multi_modal_projector.avg_pool
    hooks = [keys.register_forward_hook(take("keys"))]
    hooks.append(pool.register_forward_hook(take("pooled")))
    with torch.no_grad():
        received = tower(batch["pixel_values"], output_attentions=True).attentions
        model.model.get_image_features(batch["pixel_values"])
    for hook in hooks:
        hook.remove()
    expected = {
        "reference_tokens": look(model, photo, DEPTH // 3)[0],
        "importance": mean_units(received[-1].mean((1, 2))[..., None])[:, 0],
        "shallow_importance": mean_units(received[DEPTH // 3].mean((1, 2))[..., None])[:, 0],
        "keys": mean_units(taken["keys"]),
        "final_tokens": taken["pooled"][0].flatten(1).T,
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(reading.inputs, name)[0], value, rtol=1e-4, atol=1e-5)
    assert reading.inputs.num_heads == HEADS and reading.inputs.grid == (4, 4)


@torch.no_grad()
def test_the_kept_tokens_alone_are_projected(model: Any, processor: Any) -> None:
    sizes: list[Any] = []
    norm = model.model.multi_modal_projector.mm_soft_emb_norm
    hook = norm.register_forward_hook(lambda _part, args, _output: sizes.append(args[0].shape))
    with attach(model, processor, ByNorm(), BUDGET) as handle:
        batch = process(processor, ENTRY.rows(["{} a cat {} ?"]))
        features = model.model.get_image_features(batch["pixel_values"]).pooler_output
        ids = handle.last.ids if handle.last else []
    hook.remove()
    assert sizes == [(2, BUDGET, WIDTH)]
    whole = model.model.get_image_features(batch["pixel_values"]).pooler_output
    for found, of_image, kept in zip(features, whole, ids, strict=True):
        torch.testing.assert_close(found, of_image[kept], rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused(model: Any, processor: Any) -> None:
    with pytest.raises(ValueError, match=r"^pruner: .*merges tokens inside the tower, whose whole"):
        attach(model, processor, make_selector("tome"), BUDGET)
    with pytest.raises(ValueError, match="not supported for gemma3, as most of its layers attend"):
        attach(model, processor, make_selector("fastv"), BUDGET)
    # 5 x 5 patches, of which the last ones are left out.
    vision = make_vision_config("siglip", image_size=70)
    uneven = make_gemma3(vision_config=vision, mm_tokens_per_image=4)
    with pytest.raises(ValueError, match=r"^model: expected a side of patches .* the 2 that .* 5$"):
        attach(uneven, processor, ByNorm(), BUDGET)


def test_the_model_without_its_head_is_pruned(model: Any, processor: Any) -> None:
    rows = ENTRY.rows(TEXTS[:1])
    with attach(model.model, processor, ByNorm(), BUDGET), torch.no_grad():
        hidden = model.model(**process(processor, rows)).last_hidden_state
        logits = model.lm_head(hidden)[0]
    with torch.no_grad():
        expected = ENTRY.logits(model, see(model, rows[0], BUDGET).line)
    torch.testing.assert_close(logits, expected, **CLOSE)


@pytest.mark.parametrize("has_processor", [True, False])
def test_a_photo_is_encoded_as_pooled_tokens(
    processor: Any, tmp_path: Path, has_processor: bool
) -> None:
    model, photo = make_gemma3(), SCANNED[1]
    model.save_pretrained(tmp_path)
    if has_processor:
        size = {"height": SIDE, "width": SIDE}
        type(processor.image_processor)(size=size, **SCANS).save_pretrained(tmp_path)
    encoder = load_tower_encoder(tmp_path)
    encoded = encoder.encode(photo)
    assert encoder.num_tokens == TOKENS and encoded.grid == encoded.inputs.grid == (4, 4)
    assert encoder.width == WIDTH and encoded.picture.size == (SIDE, SIDE)
    with torch.no_grad():
        states = encode(model, photo)
        pooled = mean_units(states.last_hidden_state)
    reference = mean_units(states.hidden_states[DEPTH // 3 + 1])
    torch.testing.assert_close(encoded.inputs.reference_tokens[0], reference, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoded.inputs.final_tokens[0], pooled, rtol=1e-4, atol=1e-4)
    features = make_reference_encoder(encoder)
    [tokens] = features.encode(features.prepare(photo)[None])
    assert features.identity["grid"] == [4, 4] and features.num_tokens == TOKENS
    torch.testing.assert_close(tokens, reference, rtol=1e-4, atol=1e-4)
