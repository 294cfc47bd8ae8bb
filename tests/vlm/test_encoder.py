from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from ocvtp_kernels.vlm.encoder import DescriptorEncoder, Encoded
from ocvtp_kernels.vlm.image_processors import STRIP, cut_strip, keeps_middle
from ocvtp_kernels.vlm.tower_encoder import TowerEncoder, load_tower_encoder
from tests.vlm import models, models_next, models_qwen
from tests.vlm.models import DEPTH, NUM_PATCHES, PATCH, SIDE, WIDTH

PREFIX = {"clip": 1, "siglip": 0, "dinov2": 1, "dinov2_with_registers": 5}
KIND = pytest.mark.parametrize("kind", PREFIX)


def make_processor(name: str = "CLIPImageProcessor", **settings: Any) -> Any:
    """An image processor of the towers' size that needs no torchvision."""
    square = {"height": SIDE, "width": SIDE}
    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": square}
    if name == "SiglipImageProcessor":
        sizes = {"size": square}
    return getattr(transformers, f"{name}Pil")(**{**sizes, **settings})


def save(folder: Path, *parts: Any) -> Path:
    """A model and its processor on disk."""
    for part in parts:
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random CLIP vision model on disk."""
    return save(tmp_path_factory.mktemp("clip-vision"), models.make_tower(), make_processor())


@pytest.fixture
def photo() -> Image.Image:
    return models.make_photo(0)


@torch.no_grad()
def run_plainly(module: Any, pixels: Tensor) -> Any:
    """All layers of a tower with all their attention weights."""
    module.set_attn_implementation("eager")
    return module(pixels, output_hidden_states=True, output_attentions=True)


def prepare(photo: Image.Image, processor: Any = None) -> Tensor:
    pixels: Tensor = (processor or make_processor())(photo, return_tensors="pt")["pixel_values"]
    return pixels


def assert_taps(
    encoded: Encoded, truth: Any, prefix: int, layer: int, final_layer: int = -2
) -> None:
    """What was encoded equals a plain run, patches only."""
    # hidden_states[0] is the embedding, so layer l ends in hidden_states[l + 1].
    reference = truth.hidden_states[layer + 1][:, prefix:]
    torch.testing.assert_close(encoded.inputs.reference_tokens, reference, rtol=1e-4, atol=1e-4)
    final = truth.hidden_states[final_layer][:, prefix:]
    torch.testing.assert_close(encoded.inputs.final_tokens, final, rtol=1e-4, atol=1e-4)
    # The layer that makes the final tokens, all queries, CLS among them.
    received = truth.attentions[final_layer].mean((1, 2))[:, prefix:]
    assert encoded.inputs.importance is not None
    torch.testing.assert_close(encoded.inputs.importance, received, rtol=1e-4, atol=1e-6)
    assert encoded.grid == (SIDE // PATCH, SIDE // PATCH)


@KIND
@pytest.mark.parametrize("layer", [None, 0, DEPTH - 1])
def test_taps_the_layers_asked_for(
    tmp_path: Path, photo: Image.Image, kind: str, layer: int | None
) -> None:
    module = models.make_tower(kind)
    encoder = load_tower_encoder(save(tmp_path, module, make_processor()), layer)
    assert encoder.num_tokens == NUM_PATCHES and encoder.width == WIDTH
    truth = run_plainly(module, prepare(photo))
    used = DEPTH // 3 if layer is None else layer
    assert_taps(encoder.encode(photo), truth, PREFIX[kind], used)


def test_the_picture_is_what_the_tower_saw(clip_vision: Path, photo: Image.Image) -> None:
    picture = load_tower_encoder(clip_vision).encode(photo).picture
    # The processor scales the short side to 56 and keeps the middle.
    scaled = photo.resize((72, 56), Image.Resampling.BICUBIC).crop((8, 0, 64, 56))
    difference = np.abs(np.asarray(picture, dtype=int) - np.asarray(scaled, dtype=int))
    assert picture.size == (SIDE, SIDE) and difference.max() <= 2


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_towers_inside_models_of_two_towers(tmp_path: Path, photo: Image.Image, kind: str) -> None:
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 99}
    text |= {"num_attention_heads": 2, "bos_token_id": 0, "eos_token_id": 1}
    vision = models.make_vision_config(kind).to_dict()
    if kind == "clip":
        config: Any = transformers.CLIPConfig(vision_config=vision, text_config=text)
        module: Any = models.spread(transformers.CLIPModel(config).eval())
    else:
        config = transformers.SiglipConfig(vision_config=vision, text_config=text)
        module = models.spread(transformers.SiglipModel(config).eval())
    encoder = load_tower_encoder(save(tmp_path, module, make_processor()))
    truth = run_plainly(module.vision_model, prepare(photo))
    assert encoder.num_tokens == NUM_PATCHES
    assert_taps(encoder.encode(photo), truth, PREFIX[kind], DEPTH // 3)


@KIND
def test_a_llava_says_itself_where_its_tokens_come_from(
    tmp_path: Path, photo: Image.Image, kind: str
) -> None:
    final_layer = -1 if kind == "siglip" else -3
    model = models.make_llava(kind, vision_feature_layer=final_layer)
    save(tmp_path, model, models.make_llava_processor(kind))
    encoder = load_tower_encoder(tmp_path)
    truth = run_plainly(model.model.vision_tower, prepare(photo))
    assert encoder.num_tokens == NUM_PATCHES
    assert_taps(encoder.encode(photo), truth, PREFIX[kind], DEPTH // 3, final_layer)


def test_final_tokens_of_several_layers_are_joined(tmp_path: Path, photo: Image.Image) -> None:
    model = models.make_llava(vision_feature_layer=[-3, -2])
    encoder = load_tower_encoder(save(tmp_path, model, make_processor()))
    states = run_plainly(model.model.vision_tower, prepare(photo)).hidden_states
    expected = torch.cat([states[-3], states[-2]], dim=-1)[:, 1:]
    encoded = encoder.encode(photo)
    torch.testing.assert_close(encoded.inputs.final_tokens, expected, rtol=1e-4, atol=1e-4)
    assert encoder.width == encoded.inputs.reference_tokens.shape[-1] == WIDTH


def test_of_a_llava_next_the_whole_photo_is_encoded(tmp_path: Path, photo: Image.Image) -> None:
    model, processor = models_next.make_llava_next(), models_next.make_next_processor()
    encoder = load_tower_encoder(save(tmp_path, model, processor))
    pixels = prepare(photo, processor.image_processor)
    assert pixels.dim() == 5 and pixels.shape[1] > 1
    encoded = encoder.encode(photo)
    assert encoder.num_tokens == NUM_PATCHES and encoded.picture.size == (SIDE, SIDE)
    assert_taps(encoded, run_plainly(model.model.vision_tower, pixels[:, 0]), 1, DEPTH // 3)


def test_a_tower_saved_without_a_processor_gets_clips(tmp_path: Path, photo: Image.Image) -> None:
    encoder = load_tower_encoder(save(tmp_path, models.make_tower()))
    truth = run_plainly(models.make_tower(), prepare(photo))
    encoded = encoder.encode(photo)
    assert encoded.picture.size == (SIDE, SIDE)
    assert_taps(encoded, truth, 1, DEPTH // 3)


def test_each_tower_reads_photos_with_its_own_processor(tmp_path: Path, photo: Image.Image) -> None:
    # SigLIP squeezes the whole photo into the square and has means of its own.
    processor = make_processor("SiglipImageProcessor")
    module = models.make_tower("siglip")
    encoded = load_tower_encoder(save(tmp_path, module, processor)).encode(photo)
    assert_taps(encoded, run_plainly(module, prepare(photo, processor)), 0, DEPTH // 3)
    squeezed = np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=int)
    assert np.abs(np.asarray(encoded.picture, dtype=int) - squeezed).max() <= 2


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers"])
def test_tokens_are_counted_at_the_size_of_the_processor(
    tmp_path: Path, photo: Image.Image, kind: str
) -> None:
    # DINOv2 is trained at 518 pixels and used at 224: its positions are interpolated.
    small = {"shortest_edge": 42}, {"height": 42, "width": 42}
    processor = make_processor("BitImageProcessor", size=small[0], crop_size=small[1])
    encoder = load_tower_encoder(save(tmp_path, models.make_tower(kind), processor))
    assert encoder.num_tokens == 9
    encoded = encoder.encode(photo)
    assert encoded.inputs.reference_tokens.shape == (1, 9, WIDTH) and encoded.grid == (3, 3)


def test_without_a_crop_the_photo_decides_how_many_tokens(tmp_path: Path) -> None:
    processor = make_processor("BitImageProcessor", do_center_crop=False)
    encoder = load_tower_encoder(save(tmp_path, models.make_tower("dinov2"), processor))
    assert encoder.num_tokens is None
    for size, grid in {(56, 56): (4, 4), (90, 56): (4, 6), (56, 90): (6, 4)}.items():
        encoded = encoder.encode(models.make_photo(1, size))
        assert encoded.grid == grid and encoded.inputs.reference_tokens.shape == (
            1,
            grid[0] * grid[1],
            32,
        )
        # 90 pixels hold 6 patches and a rest without a token.
        assert encoded.picture.size == (grid[1] * PATCH, grid[0] * PATCH)


@pytest.fixture(scope="module")
def qwens(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every Qwen on disk."""
    return {
        name: save(
            tmp_path_factory.mktemp(name),
            models_qwen.make_model(name=name),
            models_qwen.make_processor(name).image_processor,
        )
        for name in models_qwen.NAMES
    }


@pytest.fixture
def qwen(qwens: dict[str, Path]) -> Path:
    return qwens["qwen2_5_vl"]


@pytest.mark.parametrize("layer", [None, 0, 3])
@pytest.mark.parametrize("size", [(6, 4), (3, 7), (1, 1)])
@pytest.mark.parametrize("name", models_qwen.NAMES)
def test_qwen_is_read_in_merged_units(
    qwens: dict[str, Path], name: str, layer: int | None, size: tuple[int, int]
) -> None:
    encoder = load_tower_encoder(qwens[name], layer)
    assert encoder.num_tokens is None and encoder.width == models_qwen.WIDTH
    photo = models_qwen.make_photo(*size, name=name)
    encoded = encoder.encode(photo)
    used = models_qwen.DEPTH // 3 if layer is None else layer
    reference, final = models_qwen.state_of(models_qwen.make_model(name=name), photo, used)
    torch.testing.assert_close(encoded.inputs.reference_tokens[0], reference, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoded.inputs.final_tokens[0], final, rtol=1e-4, atol=1e-4)
    assert encoded.inputs.importance is None and encoded.grid == size[::-1]
    difference = np.asarray(encoded.picture, dtype=int) - np.asarray(photo, dtype=int)
    assert np.abs(difference).max() <= 1


def test_qwens_picture_is_the_photo_at_the_size_it_saw(qwen: Path) -> None:
    photo = models.make_photo(0, (150, 101))
    picture = load_tower_encoder(qwen).encode(photo).picture
    resized = np.asarray(photo.resize((140, 112), Image.Resampling.BICUBIC), dtype=int)
    assert picture.size == (140, 112)
    assert np.abs(np.asarray(picture, dtype=int) - resized).max() <= 2


def test_a_qwen_saved_without_a_processor_gets_qwens(tmp_path: Path) -> None:
    encoded = load_tower_encoder(save(tmp_path, models_qwen.make_model())).encode(
        models_qwen.make_photo(5, 3)
    )
    assert encoded.grid == (3, 5) and encoded.picture.size == (140, 84)


def test_a_processor_saved_as_the_fast_one_is_found(qwen: Path, tmp_path: Path) -> None:
    save(tmp_path, models_qwen.make_model())
    settings = json.loads((qwen / "preprocessor_config.json").read_text())
    settings["image_processor_type"] = "Qwen2VLImageProcessorFast"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    # The saved processor takes photos down to one unit, a new one does not.
    assert load_tower_encoder(tmp_path).encode(models_qwen.make_photo(1, 2)).grid == (2, 1)


@pytest.mark.parametrize("kind", ["clip", "qwen"])
def test_a_spot_of_the_photo_is_where_its_token_stands(
    clip_vision: Path, qwen: Path, kind: str
) -> None:
    encoder = load_tower_encoder(clip_vision if kind == "clip" else qwen, 0)
    columns, rows, side = (4, 4, PATCH) if kind == "clip" else (6, 4, 28)
    noise = np.random.default_rng(0).integers(0, 255, (rows * side, columns * side, 3))
    before = np.asarray(noise, dtype=np.uint8)
    tokens = encoder.encode(Image.fromarray(before)).inputs.reference_tokens[0]
    for row, column in ((0, 0), (1, 2), (3, 1), (rows - 1, columns - 1)):
        after = before.copy()
        spot = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
        after[spot] = 255 - after[spot]
        moved = encoder.encode(Image.fromarray(after)).inputs.reference_tokens[0] - tokens
        assert int(moved.norm(dim=-1).argmax()) == row * columns + column


def test_the_language_model_is_not_held(tmp_path: Path) -> None:
    encoder = load_tower_encoder(save(tmp_path, models.make_llava(), make_processor()))
    assert isinstance(encoder, TowerEncoder)
    assert type(encoder.tower.module).__name__.startswith("CLIPVision")
    assert {p.dtype for p in encoder.tower.module.parameters()} == {torch.float32}


@pytest.mark.parametrize("size", [(336, 336), (500, 300), (200, 900), (20, 20)])
def test_the_descriptor_takes_the_middle_square(size: tuple[int, int]) -> None:
    encoded = DescriptorEncoder().encode(Image.new("RGB", size, "grey"))
    assert encoded.picture.size == (336, 336)
    assert encoded.inputs.reference_tokens.shape == (1, 576, 64)
    assert encoded.inputs.importance is None and encoded.grid == (24, 24)


def make_noise(size: tuple[int, int], low: int = 0, high: int = 256) -> Image.Image:
    noise = np.random.default_rng(sum(size)).integers(low, high, (size[1], size[0], 3))
    return Image.fromarray(noise.astype(np.uint8))


def turned(*sizes: tuple[int, int]) -> list[tuple[int, int]]:
    return [way for size in sizes for way in (size, size[::-1])]


# As strips go to one, a photo of just the bound's shape is none.
ORDINARY = turned((1, 1), (1, 2), (3, 2), (56, 56), (57, 61), (640, 480), (99, 1000), (7, 200))


@pytest.mark.parametrize("size", [*ORDINARY, *turned((3, 3 * STRIP), (50, 50 * STRIP))])
def test_a_photo_that_is_no_strip_goes_to_the_processor_as_it_is(
    clip_vision: Path, size: tuple[int, int]
) -> None:
    encoder = load_tower_encoder(clip_vision)
    assert isinstance(encoder, TowerEncoder)
    photo = make_noise(size)
    assert torch.equal(encoder.prepare(photo), prepare(photo))


# Short side and crop: alike, smaller, larger, unequal, odd.
GEOMETRIES = [(56, 56, 56), (64, 56, 56), (56, 70, 70), (56, 42, 70), (57, 33, 40)]
STRIPS = [(1, 40), (2, 67), (3, 1001), (7, 300), (60, 2000), (61, 2501), (5, 1999)]


@pytest.mark.parametrize("resample", [2, 3, 5, 1], ids=["linear", "cubic", "hamming", "lanczos"])
@pytest.mark.parametrize(("short", "height", "width"), GEOMETRIES)
def test_the_middle_of_a_strip_is_what_the_processor_makes_of_all_of_it(
    short: int, height: int, width: int, resample: int
) -> None:
    levels = {"do_normalize": False, "do_rescale": False, "resample": resample}
    crop = {"height": height, "width": width}
    processor = make_processor(size={"shortest_edge": short}, crop_size=crop, **levels)
    for size in turned(*STRIPS):
        # No filter overshoots black or white.
        photo = make_noise(size, 100, 156)
        part = cut_strip(photo, processor)
        assert max(part.size) <= max(short, height, width)
        away = (prepare(part, processor).float() - prepare(photo, processor).float()).abs()
        assert away.max() <= (2 if resample == 1 else 1)


def test_where_the_middle_of_a_strip_is() -> None:
    # Every pixel has a colour of its own along the strip.
    along = np.arange(4001)
    colours = np.stack([along // 256 * 15, along % 256, np.zeros(4001)], 1).astype(np.uint8)
    for photo in (Image.fromarray(colours[None]), Image.fromarray(colours[:, None])):
        part = np.asarray(cut_strip(photo, make_processor()))
        middle = part[SIDE // 2, SIDE // 2]
        assert middle.tolist() == [2000 // 256 * 15, 2000 % 256, 0]


@pytest.mark.parametrize("size", turned((1, 20000), (3, 100000), (2, 1000001)))
def test_a_strip_takes_little_memory(clip_vision: Path, size: tuple[int, int]) -> None:
    encoder = load_tower_encoder(clip_vision)
    assert isinstance(encoder, TowerEncoder)
    photo = Image.new("RGB", size, (200, 90, 10))
    tracemalloc.start()
    pixels = encoder.prepare(photo)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Arrays of NumPy, which whole would be hundreds of megabytes.
    assert peak < 2**23
    assert torch.equal(pixels, prepare(Image.new("RGB", (SIDE, SIDE), (200, 90, 10))))


def test_which_processors_keep_the_middle() -> None:
    keep = [make_processor(), make_processor("BitImageProcessor")]
    keep += [
        make_processor(crop_size={"height": 42, "width": 42}),
        make_processor("LlavaImageProcessor"),
    ]
    assert all(map(keeps_middle, keep))
    others = [
        make_processor("SiglipImageProcessor"),
        make_processor(do_center_crop=False),
        make_processor(do_resize=False, crop_size={"height": 8, "width": 8}),
        make_processor("LlavaImageProcessor", do_pad=True),
        models_next.make_next_processor().image_processor,
        models_qwen.make_processor().image_processor,
    ]
    assert not any(map(keeps_middle, others))


@pytest.mark.parametrize(
    ("kind", "name", "settings", "allowed", "refused"),
    [
        ("clip", "LlavaImageProcessor", {"do_pad": True}, (1, 500), (1, 20000)),
        ("clip", "LlavaImageProcessor", {"do_pad": True}, (1, 500), (100, 9000)),
        ("dinov2", "BitImageProcessor", {"do_center_crop": False}, (1, 33), (1, 30000)),
        ("dinov2", "BitImageProcessor", {"do_center_crop": False}, (1, 33), (3, 90000)),
    ],
)
def test_a_strip_of_which_gigabytes_would_be_made_is_refused(
    tmp_path: Path,
    kind: str,
    name: str,
    settings: dict[str, Any],
    allowed: tuple[int, int],
    refused: tuple[int, int],
) -> None:
    module = models.make_tower(kind)
    encoder = load_tower_encoder(save(tmp_path, module, make_processor(name, **settings)))
    for (width, height), (high, wide) in zip(turned(allowed), turned(refused), strict=True):
        encoder.encode(Image.new("RGB", (width, height)))
        with pytest.raises(ValueError, match=rf"photo: expected .* of {high} x {wide}"):
            encoder.encode(Image.new("RGB", (high, wide)))
