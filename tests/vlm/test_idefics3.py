"""What is Idefics3's and SmolVLM's own: tags between tiles, padding tiles, masks within tiles."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", minversion="5.19")
pytest.importorskip("tokenizers")

from ocvtp_kernels import attach
from ocvtp_kernels.vlm.handle import Handle, Options
from ocvtp_kernels.vlm.idefics3 import Idefics3Encoder, read_tiles
from ocvtp_kernels.vlm.tower_encoder import load_tower_encoder
from tests.vlm.families import BUDGET, NEW, ByNorm, entries, generate, process
from tests.vlm.families._suite import CLOSE, DETAILS, check_answers, ids_of
from tests.vlm.families._tiles import mean_units
from tests.vlm.families.idefics3 import make_entry
from tests.vlm.models import IMAGE_ID, SIDE, make_llava_processor, make_photo, make_tokenizer
from tests.vlm.models_tiles import FAKE, MERGE, UNITS, make_idefics3, make_idefics3_processor

NAMES = pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
ENTRY = entries()["idefics3"]
TEXTS = ["{} what ?", "what is red ?", "red {}{} ?"]
TILES = [3, 5, 1]  # of their photos

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> Any:
    return make_idefics3()


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    return process(ENTRY.make_processor(), ENTRY.rows(TEXTS))


def make_encoder(model: Any, budget: int = BUDGET) -> Idefics3Encoder:
    tiles = read_tiles(ENTRY.make_processor())
    return Idefics3Encoder(tiles, model.model, ByNorm(), budget, Options())


def hide(mask: Tensor) -> Tensor:
    """Some of the patches of some tiles, one of them by half."""
    mask = mask.clone()
    mask[:, 0, 28:] = 0
    mask[2, 1, :, 50:] = 0
    return mask


@pytest.mark.parametrize("masked", ["", "given", "hidden"])
@torch.no_grad()
def test_the_tower_is_given_what_the_model_gives_it(
    model: Any, batch: dict[str, Any], masked: str
) -> None:
    pixels, mask = batch["pixel_values"], batch["pixel_attention_mask"]
    assert pixels.shape[:2] == (3, 6) and not pixels[0, 3:].any() and not pixels[1].any()
    mask = {"": None, "given": mask, "hidden": hide(mask)}[masked]
    seen = list[dict[str, Any]]()
    hook = model.model.vision_model.register_forward_pre_hook(
        lambda _module, _args, given: seen.append(given), with_kwargs=True
    )
    model.model.get_image_features(pixels, mask)
    hook.remove()
    given = {"pixel_values": pixels, "pixel_attention_mask": mask}
    tiles, arguments = make_encoder(model).take_tiles(model.model, given)
    assert torch.equal(tiles, seen[0]["pixel_values"]) and len(tiles) == sum(TILES)
    expected = seen[0]["patch_attention_mask"]
    assert torch.equal(arguments.get("patch_attention_mask", torch.ones_like(expected)), expected)
    assert expected.all() == (masked != "hidden")


@pytest.mark.parametrize("images", [[0, 1, 2], [1], [0, 2]], ids=str)
@torch.no_grad()
def test_features_of_some_images_are_the_models(
    model: Any, batch: dict[str, Any], images: list[int]
) -> None:
    given = batch | {"pixel_attention_mask": hide(batch["pixel_attention_mask"])}
    names = ("pixel_values", "pixel_attention_mask")
    features = model.model.get_image_features(*(given[name] for name in names)).pooler_output
    whole = torch.cat([part.flatten(0, -2) for part in features])
    of_images = whole.split([UNITS * count for count in TILES])
    found = make_encoder(model).read(model, batch["input_ids"], given)
    assert found.sizes == [UNITS * count for count in TILES]
    ids, output = found.encode(images, Handle(False).begin())
    for image, kept, tokens in zip(images, ids, output.pooler_output, strict=True):
        assert len(kept) == min(BUDGET, UNITS * TILES[image])
        torch.testing.assert_close(tokens, of_images[image][kept], **CLOSE)


@NAMES
@pytest.mark.parametrize("splits", [True, False])
def test_photos_side_by_side_are_as_by_hand(name: str, splits: bool) -> None:
    budget = BUDGET if splits else 2
    entry = make_entry(name, do_image_splitting=splits)
    own, processor = entry.make_model(), entry.make_processor()
    rows = entry.rows(["{}{}{} what ?", "{} and {}"])
    batch = process(processor, rows)
    placeholders = int((batch["input_ids"] == IMAGE_ID).sum())
    assert placeholders == UNITS * (3 + 5 + 1 + 5 + 3 if splits else 5)
    with attach(own, processor, ByNorm(), budget) as handle:
        output = generate(entry, own, batch, **DETAILS)
        ids = ids_of(handle)
        with torch.no_grad():
            logits = own(**batch).logits
    if splits:
        assert ids == check_answers(entry, own, output, rows)
    assert [len(kept) for kept in ids] == [
        min(budget, UNITS * (n if splits else 1)) for n in (3, 5, 1, 5, 3)
    ]
    with torch.no_grad():
        for row, found in zip(rows, logits, strict=True):
            line = entry.see(own, row, budget).line
            torch.testing.assert_close(found[-len(line.tokens) :], entry.logits(own, line), **CLOSE)
            # All tags are there.
            assert line.tokens.count(processor.tokenizer.convert_tokens_to_ids(FAKE)) > len(row[1])


def test_frames_of_a_video_have_a_budget_each() -> None:
    entry = entries()["smolvlm"]
    own, processor, frames = entry.make_model(), entry.make_processor(), 3
    pixels = torch.cat(
        [
            process(processor, [("<image>", [entry.make_photo(2 + 4 * i)])])["pixel_values"]
            for i in range(frames)
        ],
        1,
    )
    times = SimpleNamespace(fps=1, timestamps=[0, 1, 2], duration=3)
    video = {"pixel_values": pixels, "video_metadata": [times]}
    batch = dict(processor.tokenizer(processor.replace_video_token(video, 0), return_tensors="pt"))
    batch["pixel_values"] = pixels
    with attach(own, processor, ByNorm(), 2) as handle:
        assert generate(entry, own, batch).shape[1] == batch["input_ids"].shape[1] + NEW
        assert [len(ids) for ids in ids_of(handle)] == [2] * frames


@NAMES
@pytest.mark.parametrize("special", [(), ("<global-img>",)], ids=["many tokens", "one"])
def test_the_tag_may_be_several_tokens(name: str, special: tuple[str, ...]) -> None:
    processor = make_idefics3_processor(name, special)
    fake, *tag = read_tiles(processor).count_tiles.args[0]  # type: ignore[attr-defined]
    words = processor.tokenizer.convert_ids_to_tokens([fake, *tag])
    assert words == [FAKE, *(special or ["<", "global", "-", "img", ">"])]


@NAMES
def test_a_tokenizer_without_the_tag_is_refused(name: str) -> None:
    own, processor = make_idefics3(name), make_idefics3_processor(name)
    processor.tokenizer = make_tokenizer()
    with pytest.raises(ValueError, match=r"^processor: .*knows .*<global-img>.*got .*<unk>"):
        attach(own, processor, ByNorm(), BUDGET)


@pytest.mark.parametrize("processor", [None, make_llava_processor()], ids=["none", "llava's"])
def test_another_processor_is_refused(model: Any, processor: Any) -> None:
    got = type(processor).__name__
    with pytest.raises(ValueError, match=f"^processor: .*Idefics3Processor.* got {got}"):
        attach(model, processor, ByNorm(), BUDGET)


def test_calls_that_do_not_fit_are_refused(model: Any, batch: dict[str, Any]) -> None:
    def check(reason: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=reason), torch.no_grad():
            model(**batch | changes)

    ids, pixels = batch["input_ids"], batch["pixel_values"].clone()
    start = (ids[0] == IMAGE_ID).nonzero()[0, 0]
    cut, without_end = ids.clone(), ids.clone()
    cut[0, start] = ids[0, -1]
    last = (ids[0] == IMAGE_ID).nonzero()[-1, 0] - UNITS
    without_end[0, last] = ids[0, -1]
    pixels[0, 2] = 0
    processor = ENTRY.make_processor()
    processor.image_seq_len = 2 * UNITS
    twice = process(processor, ENTRY.rows(TEXTS))
    with attach(model, ENTRY.make_processor(), ByNorm(), BUDGET):
        check("^input_ids: expected tiles of 4 placeholders, got 3", input_ids=cut)
        check("^input_ids: expected tiles of 4 placeholders, got 8", **twice)
        check("^input_ids: .*row 0 to end with a whole image.* got 3", input_ids=without_end)
        check("^pixel_values: expected the 9 tiles .*, got 8", pixel_values=pixels)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pixels_of_another_precision_are_taken(precision: str, batch: dict[str, Any]) -> None:
    own = make_idefics3().to(getattr(torch, precision))
    with attach(own, ENTRY.make_processor(), ByNorm(), BUDGET), torch.no_grad():
        expected = own(**batch).logits
        found = own(**batch | {"pixel_values": batch["pixel_values"].double()}).logits
    assert torch.equal(found, expected)


@NAMES
@pytest.mark.parametrize("size", [(100, 50), (40, 60), (2000, 1)], ids=str)
@torch.no_grad()
def test_of_a_photo_the_whole_one_is_encoded(
    tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    own, processor = make_idefics3(name), make_idefics3_processor(name).image_processor
    for part in (own, processor):
        part.save_pretrained(tmp_path)
    encoder, photo = load_tower_encoder(tmp_path), make_photo(0, size)
    encoded = encoder.encode(photo)
    assert encoded.grid == (2, 2) and encoder.num_tokens == UNITS
    pixels = processor(photo, do_image_splitting=False, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 1, 3, SIDE, SIDE)
    seen = own.model.vision_model(pixels[0], output_hidden_states=True)
    joined = own.model.connector.pixel_shuffle(seen.last_hidden_state, MERGE)
    torch.testing.assert_close(encoded.inputs.final_tokens, joined, **CLOSE)
    reference = mean_units(seen.hidden_states[encoder.reference_layer + 1])
    torch.testing.assert_close(encoded.inputs.reference_tokens[0], reference, **CLOSE)


def test_one_saved_without_a_processor_gets_its_own(tmp_path: Path, model: Any) -> None:
    model.save_pretrained(tmp_path)
    encoder = load_tower_encoder(tmp_path)
    assert encoder.encode(make_photo(0)).grid == (2, 2)
    assert type(encoder.processor).__name__.startswith("Idefics3ImageProcessor")
