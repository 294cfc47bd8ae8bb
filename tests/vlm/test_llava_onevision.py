"""What is LLaVA-OneVision's own: interpolated grids, prompts of several images, videos."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("tokenizers")

from ocvtp_kernels import attach, make_selector
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs
from ocvtp_kernels.selectors.oc_progressive import OCProgressive
from ocvtp_kernels.vlm.decoder.images import require_mark
from ocvtp_kernels.vlm.llava_next.layout import keep_counts
from ocvtp_kernels.vlm.llava_onevision.layout import OnevisionLayouts, group_images, lay_out
from ocvtp_kernels.vlm.tower_encoder import open_tower
from tests.vlm.families import BUDGET, REFERENCE_LAYER, ByNorm, Line, Row, join, words
from tests.vlm.families._llava import logits_of
from tests.vlm.families.llava_onevision import ENTRY, PROCESSOR, pack_whole, see
from tests.vlm.families.test_selectors import InDecoder, decode_by_hand
from tests.vlm.models import IMAGE_ID, make_photo, make_pruner
from tests.vlm.models_onevision import VIDEO_ID, make_onevision, make_onevision_processor
from tests.vlm.next_by_hand import PATCHES, PHOTOS, grid_by_hand
from tests.vlm.test_llava_next_use import Waits

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
# Rows and columns of the tiles' grids with at most 32 cells or so, whatever the padding.
GRIDS = [(4, 8), (4, 6), (9, 3), (6, 4), (5, 5)]
TEXTS = ["what is <image> this ?", "a <image> cat <image> :", "red blue dogs ?", "<image> two"]
BUDGETS = [1, 7, 16, 42, 43, 10_000]


@pytest.fixture(scope="module")
def model() -> Any:
    return make_onevision()


@pytest.fixture
def processor() -> Any:
    return make_onevision_processor()


def make_rows(first: int = 0) -> list[Row]:
    numbers, rows = iter(range(first, 100)), list[Row]()
    for text in TEXTS:
        row = [next(numbers) for _ in range(text.count("<image>"))]
        rows.append((text, [make_photo(i, PHOTOS[i % len(PHOTOS)][:2]) for i in row]))
    return rows


def process(processor: Any, rows: list[Row]) -> dict[str, Any]:
    """As `apply_chat_template` hands photos on: listed by the row, so those of several have one
    crop each."""
    texts, photos = [text for text, _ in rows], [photos for _, photos in rows if photos]
    return dict(processor(images=photos, text=texts, padding=True, return_tensors="pt"))


def see_row(model: Any, row: Row, budget: int, newlines: str = "drop") -> Any:
    return see(model, row, budget, in_tiles=len(row[1]) == 1, newlines=newlines)


@pytest.mark.parametrize("photo", range(len(PHOTOS)))
def test_the_layout_is_the_grid(model: Any, photo: int) -> None:
    width, height, across, down, _, _ = PHOTOS[photo]
    layout = lay_out(model.model.config, height, width)
    rows, columns = GRIDS[photo]
    assert layout.num_crops == 1 + across * down
    cells = torch.arange(rows * (columns + 1)).view(rows, -1) + PATCHES
    assert layout.newlines.tolist() == cells[:, -1].tolist()
    places = [*range(PATCHES), *cells[:, :-1].flatten().tolist()]
    assert layout.positions.sort().values.tolist() == places
    if photo == 0:
        grid = [token for line in grid_by_hand(photo) for token in line]
        by_place = layout.tokens[layout.positions.argsort()]
        assert by_place.tolist() == [*range(PATCHES), *grid]
        assert torch.equal(layout.rows, layout.tokens)
    else:
        assert layout.tokens.tolist() == [*range(len(places))]
        assert layout.positions.tolist() == places
        assert layout.rows.tolist() == [*range(layout.num_crops * PATCHES)]


def test_an_image_of_one_crop_has_one_newline(model: Any) -> None:
    layouts = OnevisionLayouts(model.model.config)
    for width, height, *_ in PHOTOS:
        layout = layouts.of((height, width), in_tiles=False)
        assert layout.num_crops == 1 and layout.newlines.tolist() == [PATCHES]
        for part in (layout.tokens, layout.positions, layout.rows):
            assert part.tolist() == [*range(PATCHES)]
        assert layouts.of((height, width)).num_crops > 1


def test_layouts_of_real_sizes_have_the_processors_counts() -> None:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionProcessor

    config = LlavaOnevisionConfig()
    kind = LlavaOnevisionProcessor
    counter: Any = kind.__new__(kind)
    counter.num_image_tokens, counter.vision_aspect_ratio = 27**2, "anyres_max_9"
    counter.image_processor = SimpleNamespace(image_grid_pinpoints=config.image_grid_pinpoints)
    sizes = [(384, 384), (480, 640), (1080, 1920), (37, 41), (100, 999), (2304, 2304)]
    interpolated = []
    for height, width in sizes:
        layout = lay_out(config, height, width)
        assert layout.num_packed == counter._get_number_of_features(height, width, 384, 384)
        interpolated.append(len(layout.rows) > len(layout.tokens))
    assert interpolated == [False, False, True, False, False, True]


@pytest.mark.parametrize("newlines", ["drop", "all"])
@torch.no_grad()
def test_keeping_all_changes_no_bit(model: Any, processor: Any, newlines: str) -> None:
    batch = process(processor, make_rows())
    assert batch["batch_num_images"].tolist() == [1, 2, 1]
    logits = model(**batch).logits
    with attach(model, processor, ByNorm(), 10_000, newlines=newlines) as handle:
        again = process(processor, make_rows())
        assert torch.equal(again["input_ids"], batch["input_ids"])
        assert torch.equal(model(**again).logits, logits)
        assert [len(ids) for ids in handle.last.ids] == [48, 16, 16, 40]


@pytest.mark.parametrize("newlines", ["drop", "all"])
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("selector", [ByNorm(), ByNorm("final_tokens")], ids=["early", "late"])
@torch.no_grad()
def test_prompts_of_several_images(
    model: Any, processor: Any, selector: Any, budget: int, newlines: str
) -> None:
    rows = make_rows()
    with attach(model, processor, selector, budget, newlines=newlines) as handle:
        batch = process(processor, rows)
        logits, kept = model(**batch).logits, [ids.tolist() for ids in handle.last.ids]
    for row, found in zip(rows, logits, strict=True):
        line, ids = see_row(model, row, budget, newlines)
        expected = logits_of(model, line)
        torch.testing.assert_close(found[-len(expected) :], expected, **CLOSE)
        assert [kept.pop(0) for _ in ids] == [image.tolist() for image in ids]
    assert not kept


@pytest.mark.parametrize("newlines", ["drop", "all"])
def test_counts_are_known_without_pixels(model: Any, processor: Any, newlines: str) -> None:
    sizes = [(height, width) for width, height, *_ in PHOTOS]
    rows: list[Row] = [("<image>", [make_photo(i, photo[:2])]) for i, photo in enumerate(PHOTOS)]
    for budget in BUDGETS:
        with attach(model, processor, ByNorm(), budget, newlines=newlines):
            counts = processor._get_num_multimodal_tokens(image_sizes=sizes)
            found = (process(processor, rows)["input_ids"] == IMAGE_ID).sum(1)
            assert counts["num_image_tokens"] == found.tolist()


class Recording(ByNorm):
    def __init__(self) -> None:
        super().__init__("final_tokens", "importance", "shallow_importance", "keys")
        self.seen: list[SelectorInputs] = []

    def __call__(self, inputs: SelectorInputs, budget: int) -> Tensor:
        self.seen.append(inputs)
        return super().__call__(inputs, budget)


@torch.no_grad()
def test_a_selector_reads_fields_interpolated_alike(processor: Any) -> None:
    model, selector = make_onevision(), Recording()
    model.set_attn_implementation({"vision_config": "eager"})
    photo = make_photo(1, PHOTOS[1][:2])
    with attach(model, processor, selector, 7):
        model(**process(processor, [("<image>", [photo])]))
    [inputs] = selector.seen
    packed = pack_whole(model, photo, REFERENCE_LAYER)
    assert len(packed.ids) == 40
    torch.testing.assert_close(inputs.reference_tokens[0], packed.reference, **CLOSE)
    torch.testing.assert_close(inputs.final_tokens[0], packed.features, **CLOSE)
    pixels = PROCESSOR([[photo]], return_tensors="pt")["pixel_values"][0]
    tower = model.model.vision_tower
    found = tower(pixels, output_attentions=True, output_hidden_states=True)
    last = tower.get_submodule("encoder.layers.3")
    by_hand = {
        "importance": found.attentions[-1].mean((1, 2))[..., None],
        "shallow_importance": found.attentions[REFERENCE_LAYER].mean((1, 2))[..., None],
        "keys": last.self_attn.k_proj(last.layer_norm1(found.hidden_states[-2])),
    }
    for name, values in by_hand.items():
        [expected], _ = model.model.pack_image_features(
            [values], [(photo.height, photo.width)], vision_aspect_ratio="anyres_max_2"
        )
        field = getattr(inputs, name)[0]
        torch.testing.assert_close(field.view(expected.shape), expected, **CLOSE)


def test_half_precision_is_interpolated_in_float32(model: Any) -> None:
    config, size = model.model.config, (70, 100)
    layout = lay_out(config, *size)
    [group] = group_images(config, [size], [layout], [keep_counts(layout, 7, "drop")], PATCHES)
    tokens = torch.randn(5 * PATCHES, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(group.take(tokens), group.take(tokens.float()).bfloat16())


@pytest.mark.parametrize(("photo", "projected"), [(0, 7), (1, 5 * PATCHES)])
def test_what_goes_through_the_projector(
    model: Any, processor: Any, photo: int, projected: int
) -> None:
    rows: list[int] = []
    hook = model.model.multi_modal_projector.register_forward_hook(
        lambda _module, args, _output: rows.append(args[0].shape[:-1].numel())
    )
    with hook, attach(model, processor, ByNorm(), 7), torch.no_grad():
        model(**process(processor, [("<image>", [make_photo(0, PHOTOS[photo][:2])])]))
    assert rows == [projected]


class Merging(ByNorm):
    """Merges the reference tokens themselves."""

    def __call__(self, inputs: SelectorInputs, budget: int) -> Any:
        ids = super().__call__(inputs, budget)
        return Selected(ids, inputs.reference_tokens[:, :budget])


@torch.no_grad()
def test_merged_reference_tokens_are_projected(model: Any, processor: Any) -> None:
    photo = make_photo(1, PHOTOS[1][:2])
    with attach(model, processor, Merging(), 7):
        batch = process(processor, [("<image>", [photo])])
        names = ("pixel_values", "image_sizes", "batch_num_images")
        given = {name: batch[name] for name in names}
        [found] = model.model.get_image_features(**given).pooler_output
    packed = pack_whole(model, photo, REFERENCE_LAYER)
    expected = model.model.multi_modal_projector(packed.reference[:7])
    torch.testing.assert_close(found, expected, **CLOSE)


@torch.no_grad()
def test_reference_tokens_in_the_decoder(model: Any, processor: Any) -> None:
    with attach(model, processor, OCProgressive(make_pruner(), [(1, 7)]), 7):
        batch = process(processor, rows := make_rows())
        names = ("pixel_values", "image_sizes", "batch_num_images")
        given = {name: batch[name] for name in names}
        features = model.model.get_image_features(**given).pooler_output
    photos = [(photo, len(row) == 1) for _, row in rows for photo in row]
    for (photo, in_tiles), feature in zip(photos, features, strict=True):
        packed = pack_whole(model, photo, REFERENCE_LAYER, in_tiles)
        reference = require_mark(feature).reference
        assert reference is not None and reference.ids is not None
        torch.testing.assert_close(reference.tokens, packed.reference, **CLOSE)
        assert torch.equal(reference.ids, packed.places) and len(feature) == packed.whole


@torch.no_grad()
def test_of_a_photo_by_itself_the_whole_image_is_encoded(model: Any, processor: Any) -> None:
    photo = make_photo(1, PHOTOS[1][:2])
    encoder = open_tower(model.model, processor.image_processor, "", None)
    inputs = encoder.encode(photo).inputs
    assert (encoder.num_tokens, encoder.reference_layer) == (PATCHES, REFERENCE_LAYER)
    pixels = PROCESSOR(photo, return_tensors="pt")["pixel_values"][0, :1]
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(inputs.reference_tokens, states[REFERENCE_LAYER + 1], **CLOSE)
    # Before the tower's last norm, as the model takes them.
    torch.testing.assert_close(inputs.final_tokens, states[-1], **CLOSE)


def add_video(batch: dict[str, Any], order: str) -> tuple[dict[str, Any], Tensor]:
    """A batch of a photo and a video of three frames, with words around, and the video."""
    video = torch.randn(1, 3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    # Of a frame 2 x 2 tokens, and a newline.
    parts = {"photo": batch["input_ids"][0].tolist(), "video": [VIDEO_ID] * 13}
    first, second = (parts[name] for name in order.split(", "))
    ids = torch.tensor([[7, *first, 9, *second, 8]])
    added = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return batch | added | {"pixel_values_videos": video}, video


def see_video(model: Any, photo: Any, video: Tensor, order: str, budget: int) -> Line:
    line = words(model, [7], 0)
    for name, token in zip(order.split(", "), (9, 8), strict=True):
        if name == "photo":
            line = join(line, see(model, ("<image>", [photo]), budget, line.following).line)
        else:
            part = words(model, [VIDEO_ID] * 13, line.following)
            features = model.model.get_video_features(video).pooler_output[0]
            # Older versions add the newline later.
            features = torch.cat([features, model.model.image_newline[None]])[:13]
            line = join(line, part._replace(embeddings=features))
        line = join(line, words(model, [token], line.following))
    return line


ORDER = pytest.mark.parametrize("order", ["photo, video", "video, photo"])


@ORDER
@pytest.mark.parametrize("budget", [7, 10_000])
@torch.no_grad()
def test_videos_stay_whole(model: Any, processor: Any, order: str, budget: int) -> None:
    photo = make_photo(1, PHOTOS[1][:2])
    with attach(model, processor, ByNorm(), budget) as handle:
        batch, video = add_video(process(processor, [("<image>", [photo])]), order)
        logits = model(**batch).logits[0]
        assert len(handle.last.ids[0]) == min(budget, 40)
        tokens = model.generate(**batch, max_new_tokens=1, do_sample=False)
    line = see_video(model, photo, video, order, budget)
    torch.testing.assert_close(logits, logits_of(model, line), **CLOSE)
    assert tokens[0, -1] == logits[-1].argmax()


@ORDER
@torch.no_grad()
def test_videos_stay_whole_in_the_decoder(model: Any, processor: Any, order: str) -> None:
    photo = make_photo(1, PHOTOS[1][:2])
    with attach(model, processor, InDecoder(1), BUDGET) as handle:
        batch, video = add_video(process(processor, [("<image>", [photo])]), order)
        logits = model(**batch).logits[0, -1]
        kept = [ids.tolist() for ids in handle.last.ids]
        tokens = model.generate(**batch, max_new_tokens=1, do_sample=False)
    line = see_video(model, photo, video, order, 10_000)
    expected, ids = decode_by_hand(ENTRY, model, line, [44], 1)
    torch.testing.assert_close(logits, expected[-1], **CLOSE)
    assert kept == ids and tokens[0, -1] == logits.argmax()


def test_bad_calls(model: Any, processor: Any) -> None:
    batch = process(processor, make_rows())
    del batch["input_ids"], batch["attention_mask"]
    for attached in (ByNorm(), OCProgressive(make_pruner(), [(1, 7)])):
        with attach(model, processor, attached, 7):
            for bad, message in (
                ({"vision_aspect_ratio": "anyres_max_9"}, "^vision_aspect_ratio: .*'anyres_max_2'"),
                ({"vision_feature_select_strategy": "default"}, "^vision_feature_select_strategy"),
                ({"batch_num_images": [1, 2]}, r"^batch_num_images: .* 4 in all, got \[1, 2\]"),
            ):
                with pytest.raises(ValueError, match=message):
                    model.model.get_image_features(**batch | bad)
    with attach(model, processor, ByNorm(), 7), pytest.raises(ValueError, match=r"^pixel_values: "):
        model.model.get_image_features(**batch | {"pixel_values": batch["pixel_values"][:, :2]})
    with pytest.raises(ValueError, match="merges tokens inside a tower of images of one size"):
        attach(model, processor, make_selector("tome"), 7)


def test_crops_may_come_without_padding(model: Any, processor: Any) -> None:
    with attach(model, processor, ByNorm(), 7), torch.no_grad():
        batch = process(processor, make_rows())
        logits = model(**batch).logits
        pairs = zip(batch["pixel_values"], [3, 1, 1, 5], strict=True)
        batch["pixel_values"] = torch.cat([image[:count] for image, count in pairs])
        assert torch.equal(model(**batch).logits, logits)


@torch.no_grad()
def test_nothing_waits_for_the_device(model: Any, processor: Any) -> None:
    with attach(model, processor, ByNorm("importance"), 20, newlines="all"):
        batch = process(processor, make_rows())
        names = ("image_sizes", "batch_num_images")
        given = {name: batch[name].tolist() for name in names}
        given["pixel_values"] = batch["pixel_values"]
        model.model.get_image_features(**given)
        with Waits() as waits:
            model.model.get_image_features(**given)
        assert waits.found == []
