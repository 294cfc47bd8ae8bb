"""Models that `ocvtp prune` cannot take, and the error messages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import transformers

from ocvtp_kernels.vlm.tower_encoder import load_tower_encoder
from tests.vlm import models, models_qwen


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model: cannot load .*nothing"):
        load_tower_encoder(tmp_path / "nothing")


def test_half_a_file_of_weights(tmp_path: Path) -> None:
    models.make_tower().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(ValueError, match="model: cannot load"):
        load_tower_encoder(tmp_path)


def test_a_text_model_is_refused_with_the_known_types(tmp_path: Path) -> None:
    transformers.LlamaModel(models.make_text_config()).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"has no vision tower known here: .*clip_vision_model, siglip_vision_model, .*llama",
    ) as error:
        load_tower_encoder(tmp_path)
    assert "qwen2_5_vl" in str(error.value) and str(tmp_path) in str(error.value)


def test_an_unknown_tower_inside_a_llava(tmp_path: Path) -> None:
    vision = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    models.make_llava(vision_config=vision).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no vision tower known here: .*got vit"):
        load_tower_encoder(tmp_path)


@pytest.mark.parametrize("layer", [-1, 4])
@pytest.mark.parametrize("kind", ["clip", "qwen"])
def test_a_reference_layer_out_of_range(tmp_path: Path, kind: str, layer: int) -> None:
    model = models.make_tower() if kind == "clip" else models_qwen.make_model()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"reference_layer: expected 0 to 3, got {layer}"):
        load_tower_encoder(tmp_path, layer)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_processor_of_another_size(tmp_path: Path, kind: str) -> None:
    models.make_tower(kind, image_size=84).save_pretrained(tmp_path)
    models.make_llava_processor().image_processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model: the tower of .* takes no images of 56 x 56"):
        load_tower_encoder(tmp_path)


def test_without_transformers_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"run `pip install .*'\.\[vlm\]'` in "):
        load_tower_encoder("some/model")
