from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from ocvtp_kernels.vlm.encoder import DescriptorEncoder, TowerEncoder

SIDE, PATCH, DEPTH, WIDTH = 56, 14, 6, 32


def vision_config() -> object:
    return transformers.CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        attn_implementation="eager",
    )


def processor() -> object:
    return transformers.CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )


@pytest.fixture(scope="module")
def clip_vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random CLIP vision model on disk."""
    folder = tmp_path_factory.mktemp("clip-vision")
    torch.manual_seed(0)
    transformers.CLIPVisionModel(vision_config()).save_pretrained(folder)
    processor().save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


@pytest.fixture
def photo() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((90, 70), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("layer", [None, 0, 3, DEPTH - 1])
def test_taps_the_layers_asked_for(
    clip_vision: Path, photo: Image.Image, layer: int | None
) -> None:
    encoder = TowerEncoder(clip_vision, reference_layer=layer)
    encoded = encoder.encode(photo)
    model = transformers.CLIPVisionModel.from_pretrained(clip_vision, attn_implementation="eager")
    pixels = processor()(photo, return_tensors="pt")["pixel_values"]  # type: ignore[operator]
    with torch.no_grad():
        truth = model(pixels, output_hidden_states=True, output_attentions=True)
    # hidden_states[0] is the embedding, so layer l ends in hidden_states[l + 1].
    reference = truth.hidden_states[(DEPTH // 3 if layer is None else layer) + 1]
    torch.testing.assert_close(encoded.reference_tokens, reference[:, 1:])
    torch.testing.assert_close(encoded.final_tokens, truth.hidden_states[-2][:, 1:])
    # The layer that makes hidden_states[-2], all queries, CLS among them.
    received = truth.attentions[DEPTH - 2].mean((1, 2))[:, 1:]
    assert encoded.importance is not None
    torch.testing.assert_close(encoded.importance, received, rtol=1e-4, atol=1e-6)
    assert encoded.grid == (SIDE // PATCH, SIDE // PATCH)
    assert encoder.num_tokens == 16 and encoder.width == WIDTH


def test_the_picture_is_what_the_tower_saw(clip_vision: Path, photo: Image.Image) -> None:
    picture = TowerEncoder(clip_vision).encode(photo).picture
    # The processor scales the short side to 56 and keeps the middle.
    scaled = photo.resize((72, 56), Image.Resampling.BICUBIC).crop((8, 0, 64, 56))
    difference = np.abs(np.asarray(picture, dtype=int) - np.asarray(scaled, dtype=int))
    assert picture.size == (SIDE, SIDE) and difference.max() <= 2


def test_towers_inside_clip_and_llava(tmp_path: Path, photo: Image.Image) -> None:
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 99}
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config=vision_config().to_dict(),  # type: ignore[attr-defined]
            text_config={**text, "num_attention_heads": 2, "bos_token_id": 0, "eos_token_id": 1},
        )
    )
    llava = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=vision_config(),
            text_config=transformers.LlamaConfig(**text, num_attention_heads=2),
        )
    )
    for name, model in {"clip": clip, "llava": llava}.items():
        model.save_pretrained(tmp_path / name)
        processor().save_pretrained(tmp_path / name)  # type: ignore[attr-defined]
        encoded = TowerEncoder(tmp_path / name).encode(photo)
        assert encoded.reference_tokens.shape == (1, 16, WIDTH)
        assert encoded.importance is not None and encoded.importance.shape == (1, 16)


def test_a_tower_saved_without_a_processor_gets_clips(tmp_path: Path, photo: Image.Image) -> None:
    transformers.CLIPVisionModel(vision_config()).save_pretrained(tmp_path)
    assert TowerEncoder(tmp_path).encode(photo).picture.size == (SIDE, SIDE)


def test_a_tower_without_cls_keeps_every_token(tmp_path: Path, photo: Image.Image) -> None:
    config = transformers.SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
    )
    transformers.SiglipVisionModel(config).save_pretrained(tmp_path)
    encoded = TowerEncoder(tmp_path).encode(photo)
    assert encoded.reference_tokens.shape == (1, 16, WIDTH)


def test_what_cannot_be_tapped_is_said(clip_vision: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model: cannot load"):
        TowerEncoder(tmp_path / "nothing")
    with pytest.raises(ValueError, match="reference_layer: expected 0 to 5, got 6"):
        TowerEncoder(clip_vision, reference_layer=6)
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=9,
    )
    transformers.LlamaModel(config).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="has no vision tower"):
        TowerEncoder(tmp_path / "text")


@pytest.mark.parametrize("size", [(336, 336), (500, 300), (200, 900), (20, 20)])
def test_the_descriptor_takes_the_middle_square(size: tuple[int, int]) -> None:
    encoded = DescriptorEncoder().encode(Image.new("RGB", size, "grey"))
    assert encoded.picture.size == (336, 336)
    assert encoded.reference_tokens.shape == (1, 576, 64)
    assert encoded.importance is None and encoded.grid == (24, 24)
