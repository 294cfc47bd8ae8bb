"""`ocvtp prune --model`: every kind of tower, photos at their own size, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

import ocvtp_kernels as ocvtp
from ocvtp_kernels.cli import app, picture
from ocvtp_kernels.cli.photo import open_photo
from ocvtp_kernels.vlm.tower_encoder import load_tower_encoder
from tests.cli.shelf import MODELS as SAVED
from tests.cli.shelf import save_models
from tests.vlm import (
    models,
    models_qwen,
)

BUDGET = 5
MODELS = [*SAVED, "qwen"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def make_photo(path: Path, width: int, height: int, seed: int = 0) -> Path:
    """A smooth mid-tone photo, nowhere so dark that dimming it could not be seen."""
    coarse = np.random.default_rng(seed).integers(110, 230, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, and a pruner for tokens as wide as theirs."""
    folder = tmp_path_factory.mktemp("shelf")
    save_models(folder)
    transformers.LlamaModel(models.make_text_config()).save_pretrained(folder / "text")
    models.make_pruner().save_checkpoint(folder / "pruner.safetensors")
    models.make_pruner(width=24).save_checkpoint(folder / "narrow.safetensors")
    placed = models.make_pruner(enc_place_mean=True, pos_resolut=(7,))
    placed.save_checkpoint(folder / "placed.safetensors")
    return folder


def prune(shelf: Path, model: str, output: Path, *photos: Path, budget: int = BUDGET) -> Result:
    return run(
        *("prune", *photos, "--model", shelf / model, "--budget", budget),
        *("--checkpoint", shelf / "pruner.safetensors", "--output", output),
    )


def read(output: Path, name: str = "photo") -> dict[str, Any]:
    record: dict[str, Any] = json.loads((output / f"{name}-pruned.json").read_text())
    return record


@pytest.mark.parametrize("model", MODELS)
def test_the_record_says_what_the_pruner_keeps_of_patches(
    shelf: Path, tmp_path: Path, model: str
) -> None:
    photo = make_photo(tmp_path / "photo.png", 90, 70)
    result = prune(shelf, model, tmp_path, photo)
    assert result.exit_code == 0, result.output
    record = read(tmp_path)
    rows, columns = (2, 3) if model == "qwen" else (4, 4)
    assert record["grid"] == [rows, columns] and record["num_tokens"] == rows * columns
    encoded = load_tower_encoder(shelf / model).encode(open_photo(photo))
    pruner = ocvtp.OCPruner.from_checkpoint(shelf / "pruner.safetensors")
    with torch.no_grad():
        out = pruner(
            encoded.inputs.reference_tokens,
            encoded.inputs.final_tokens,
            budget=BUDGET,
            importance=encoded.inputs.importance,
        )
    assert record["ids"] == out.ids[0].tolist()
    assert record["budget"] == record["kept"] == BUDGET
    assert (encoded.inputs.importance is None) == (model == "qwen")


def test_a_llava_keeps_the_same_tokens_when_it_answers(shelf: Path, tmp_path: Path) -> None:
    photo = make_photo(tmp_path / "photo.png", 90, 70)
    assert prune(shelf, "llava", tmp_path, photo).exit_code == 0
    model, processor = models.make_llava(), models.make_llava_processor()
    with ocvtp.attach(model, processor, models.make_pruner(), BUDGET) as handle:
        models.generate(model, models.prepare(processor, ["<image> what ?"], [open_photo(photo)]))
    assert handle.last is not None and read(tmp_path)["ids"] == handle.last.ids[0].tolist()


@models_qwen.needs_encoded_images()
def test_a_qwen_keeps_the_same_tokens_when_it_answers(shelf: Path, tmp_path: Path) -> None:
    photo = make_photo(tmp_path / "photo.png", 150, 101)
    assert prune(shelf, "qwen", tmp_path, photo).exit_code == 0
    model, processor = models_qwen.make_model(), models_qwen.make_processor()
    batch = models_qwen.make_batch([(f"{models_qwen.PHOTO} what ?", [open_photo(photo)])])
    with ocvtp.attach(model, processor, models.make_pruner(), BUDGET) as handle:
        model.generate(**batch, max_new_tokens=1, do_sample=False)
    assert handle.last is not None and read(tmp_path)["ids"] == handle.last.ids[0].tolist()


def find_marked(drawn: Image.Image, photo: Path, grid: tuple[int, int]) -> list[int]:
    """Squares of the kept-tokens panel that show the photo undimmed, row by row."""
    rows, columns = grid
    panorama = columns > picture.PANORAMA * rows
    panel = 2 * picture.PANEL + picture.GUTTER if panorama else picture.PANEL
    cell = round(panel / max(grid))
    height, width = rows * cell, columns * cell
    bottom = drawn.height - picture.MARGIN
    if panorama:
        bottom -= height + picture.GUTTER + picture.HEADING
    box = (picture.MARGIN, bottom - height, picture.MARGIN + width, bottom)
    shown = np.asarray(drawn.crop(box), dtype=int)
    truth = np.asarray(Image.open(photo).resize((width, height), Image.Resampling.LANCZOS))
    away = np.abs(shown - truth).reshape(rows, cell, columns, cell, 3)
    # A frame stands on the edge of a marked square.
    middle = away[:, cell // 4 : -cell // 4, :, cell // 4 : -cell // 4].mean((1, 3, 4))
    assert ((middle < 3) | (middle > 20)).all()
    found: list[int] = np.flatnonzero(middle < 3).tolist()
    return found


@pytest.mark.parametrize("grid", [(4, 6), (7, 3), (3, 9), (1, 8)])
def test_squares_are_marked_where_the_kept_tokens_are(
    shelf: Path, tmp_path: Path, grid: tuple[int, int]
) -> None:
    photo = make_photo(tmp_path / "photo.png", grid[1] * 28, grid[0] * 28, seed=grid[0])
    assert prune(shelf, "qwen", tmp_path, photo).exit_code == 0
    record = read(tmp_path)
    assert record["grid"] == list(grid)
    drawn = Image.open(tmp_path / "photo-pruned.png")
    assert find_marked(drawn, photo, grid) == record["ids"]


def test_a_photo_of_fewer_tokens_than_the_budget_keeps_them_all(
    shelf: Path, tmp_path: Path
) -> None:
    small, large = (make_photo(tmp_path / f"{side}.png", side * 28, 56) for side in (3, 9))
    result = prune(shelf, "qwen", tmp_path, small, large, budget=10)
    assert result.exit_code == 0, result.output
    whole, pruned = read(tmp_path, "3"), read(tmp_path, "9")
    assert whole["ids"] == list(range(6)) and whole["num_tokens"] == whole["kept"] == 6
    assert whole["budget"] == pruned["budget"] == pruned["kept"] == 10
    assert pruned["num_tokens"] == 18 and whole["coverage"] == pytest.approx(1)
    assert "all 6 tokens (budget 10)" in result.stdout and "10 of 18 tokens" in result.stdout
    assert find_marked(Image.open(tmp_path / "3-pruned.png"), small, (2, 3)) == whole["ids"]


def test_a_photo_of_one_token(shelf: Path, tmp_path: Path) -> None:
    photo = make_photo(tmp_path / "photo.png", 28, 28)
    assert prune(shelf, "qwen", tmp_path, photo, budget=1).exit_code == 0
    assert read(tmp_path)["ids"] == [0] and read(tmp_path)["grid"] == [1, 1]


def test_a_photo_that_qwen_cannot_take_is_skipped(shelf: Path, tmp_path: Path) -> None:
    line = make_photo(tmp_path / "line.png", 500, 2)
    result = prune(shelf, "qwen", tmp_path / "out", line, make_photo(tmp_path / "a.png", 90, 70))
    assert result.exit_code == 1 and "line.png: absolute aspect ratio" in result.output
    assert read(tmp_path / "out", "a")["num_tokens"] == 6


@pytest.mark.parametrize("model", ["clip", "siglip", "llava_next", "llava_onevision"])
def test_strips_and_dots_are_pruned(shelf: Path, tmp_path: Path, model: str) -> None:
    sizes = {"wide": (20000, 1), "tall": (1, 20000), "long": (3, 60000), "dot": (1, 1)}
    photos = [make_photo(tmp_path / f"{name}.png", *size) for name, size in sizes.items()]
    result = prune(shelf, model, tmp_path, *photos)
    assert result.exit_code == 0, result.output
    for name in sizes:
        assert len(read(tmp_path, name)["ids"]) == BUDGET


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("nothing", [], "model: cannot load"),
        ("text", [], "has no vision tower known here"),
        ("clip", ["--reference-layer", "4"], "reference_layer: expected 0 to 3, got 4"),
        ("qwen", ["--reference-layer", "4"], "reference_layer: expected 0 to 3, got 4"),
        ("clip", ["--budget", "17"], "budget: expected 1 to 16"),
        ("siglip", ["--budget", "17"], "budget: expected 1 to 16"),
        ("dinov2_with_registers", ["--budget", "17"], "budget: expected 1 to 16"),
        ("llava_next", ["--budget", "17"], "budget: expected 1 to 16"),
        ("llava_onevision", ["--budget", "17"], "budget: expected 1 to 16"),
        ("qwen", ["--budget", "0"], "budget: expected at least 1, got 0"),
        ("llava", ["--checkpoint", "narrow.safetensors"], "expected enc_in_dim 32"),
        ("qwen", ["--checkpoint", "narrow.safetensors"], "expected enc_in_dim 32"),
        ("llava", ["--checkpoint", "placed.safetensors"], "16, got one of 7 (enc_place_mean)"),
        ("qwen", ["--checkpoint", "placed.safetensors"], "the photo, got one of 7"),
    ],
)
def test_wrong_models_write_nothing(
    shelf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    options: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(shelf)
    photo = make_photo(tmp_path / "photo.png", 90, 70)
    usual = ["--budget", 5, "--checkpoint", "pruner.safetensors"]
    # The last one of an option counts.
    result = run(
        *("prune", photo, "--model", shelf / model, "--output", tmp_path / "out"), *usual, *options
    )
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert not (tmp_path / "out").exists()
