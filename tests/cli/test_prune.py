from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

import ocvtp_kernels as ocvtp
from ocvtp_kernels.cli import app
from ocvtp_kernels.cli.photo import open_photo
from ocvtp_kernels.vlm.encoder import DescriptorEncoder
from tests.cases import random_pruner, small_config


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def make_photo(path: Path, seed: int = 0, size: tuple[int, int] = (180, 130)) -> Path:
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return make_photo(tmp_path / "garden.png")


def test_leaves_a_picture_and_a_record(photo: Path, tmp_path: Path) -> None:
    result = run("prune", photo, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "garden-pruned.json",
        "garden-pruned.png",
    ]
    record = json.loads((tmp_path / "out" / "garden-pruned.json").read_text())
    assert len(record["ids"]) == record["budget"] == 64
    assert record["ids"] == sorted(set(record["ids"])) and record["ids"][-1] < 576
    assert record["num_tokens"] == 576 and record["grid"] == [24, 24]
    assert [slot["slot"] for slot in record["slots"]] == list(range(64))
    assert all(0 < slot["peak"] <= 1 for slot in record["slots"])
    picked = {slot["id"] for slot in record["slots"]}
    assert set(record["ids"]) == picked | set(record["padded"])
    assert record["random_coverage"]["seeds"] == 20
    lines = result.stdout.splitlines()
    assert lines[0] == str(tmp_path / "out" / "garden-pruned.png")
    assert f"coverage {record['coverage']:.3f}" in lines[1]
    picture = Image.open(tmp_path / "out" / "garden-pruned.png")
    assert picture.width > 1000


def test_the_record_says_what_the_pruner_does(photo: Path, tmp_path: Path) -> None:
    run("prune", photo, "--output", tmp_path, "--budget", 40, "--seed", 3)
    record = json.loads((tmp_path / "garden-pruned.json").read_text())
    checkpoint = Path(ocvtp.__file__).parent / "assets" / "demo_pruner.safetensors"
    pruner = ocvtp.OCPruner.from_checkpoint(checkpoint, noise_seed=3)
    tokens = DescriptorEncoder().encode(open_photo(photo)).inputs.reference_tokens
    out = pruner(tokens, tokens, budget=40)
    assert record["ids"] == out.ids[0].tolist()
    # In float64, where no attention rounds to 1 and ties.
    exact = ocvtp.OCPruner.from_checkpoint(checkpoint, noise_seed=3, dtype=torch.float64)
    peaks, picks = exact.attend(tokens.double(), num_slots=40)[1][0].max(dim=-1)
    assert [slot["id"] for slot in record["slots"]] == picks.tolist()
    assert [slot["peak"] for slot in record["slots"]] == pytest.approx(peaks.tolist(), rel=1e-3)
    assert record["coverage"] == pytest.approx(float(ocvtp.coverage(tokens, out.ids)), abs=1e-6)
    by_chance = [
        float(
            ocvtp.coverage(
                tokens,
                torch.randperm(576, generator=torch.Generator().manual_seed(seed))[None, :40],
            )
        )
        for seed in range(20)
    ]
    assert record["random_coverage"]["mean"] == pytest.approx(np.mean(by_chance), abs=1e-6)


def test_two_runs_write_the_same_bytes(photo: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        run("prune", photo, "--output", tmp_path / name)
    for suffix in ("png", "json"):
        first, second = (
            (tmp_path / n / f"garden-pruned.{suffix}").read_bytes() for n in ("first", "second")
        )
        assert first == second


def test_one_bad_photo_is_reported_and_skipped(photo: Path, tmp_path: Path) -> None:
    truncated = tmp_path / "truncated.png"
    truncated.write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    text = tmp_path / "notes.jpg"
    text.write_text("not a photo")
    other = make_photo(tmp_path / "other.jpg", seed=1)
    result = run(
        "prune", photo, truncated, text, tmp_path / "none.png", other, "--output", tmp_path / "out"
    )
    assert result.exit_code == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "garden-pruned.json",
        "garden-pruned.png",
        "other-pruned.json",
        "other-pruned.png",
    ]
    for bad in ("truncated.png", "notes.jpg", "none.png"):
        assert f"{bad}:" in result.output
    assert "3 of 5 photos were skipped" in result.output


def test_a_lone_bad_photo_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert run("prune", tmp_path / "bad.png", "--output", tmp_path / "out").exit_code == 1
    assert not (tmp_path / "out").exists()


def test_photos_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    photos = []
    for index, folder in enumerate(("a", "b", "c")):
        (tmp_path / folder).mkdir()
        photos.append(make_photo(tmp_path / folder / "same.png", seed=index))
    assert run("prune", *photos, "--output", tmp_path / "out").exit_code == 0
    names = sorted(p.name for p in (tmp_path / "out").glob("*.json"))
    assert names == ["same-pruned-2.json", "same-pruned-3.json", "same-pruned.json"]
    recorded = [json.loads((tmp_path / "out" / name).read_text())["photo"] for name in names]
    assert recorded == [str(photos[1]), str(photos[2]), str(photos[0])]


def test_a_picture_never_overwrites_a_photo(tmp_path: Path) -> None:
    photos = [make_photo(tmp_path / name) for name in ("a.png", "a-pruned.png")]
    before = [photo.read_bytes() for photo in photos]
    assert run("prune", *photos, "--output", tmp_path).exit_code == 0
    assert [photo.read_bytes() for photo in photos] == before
    assert len(list(tmp_path.glob("*.png"))) == 4 and len(list(tmp_path.glob("*.json"))) == 2


@pytest.mark.parametrize("budget", [1, 576])
def test_the_ends_of_the_budget(photo: Path, tmp_path: Path, budget: int) -> None:
    assert run("prune", photo, "--output", tmp_path, "--budget", budget).exit_code == 0
    record = json.loads((tmp_path / "garden-pruned.json").read_text())
    assert len(record["ids"]) == budget


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "0"], "budget: expected 1 to 576"),
        (["--budget", "577"], "budget: expected 1 to 576"),
        (["--padding", "zeros"], "padding: expected one of"),
        (["--checkpoint", "none.pth"], "no such file"),
        (["--model", "some/model"], "checkpoint: expected a pruner"),
        (["--reference-layer", "3"], "reference_layer: expected a model"),
        (["--config", "none.json"], "none.json"),
    ],
)
def test_wrong_options_write_nothing(
    photo: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    result = run("prune", photo, "--output", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert words in result.output
    assert not (tmp_path / "out").exists()


def test_a_pruner_for_other_tokens_is_refused(photo: Path, tmp_path: Path) -> None:
    random_pruner(small_config()).save_checkpoint(tmp_path / "small.safetensors")
    result = run("prune", photo, "--checkpoint", tmp_path / "small.safetensors")
    assert result.exit_code == 2
    assert "expected enc_in_dim 64" in result.output


def test_nan_tokens_are_reported(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = DescriptorEncoder.encode

    def spoilt(self: DescriptorEncoder, photo: Image.Image) -> object:
        encoded = encode(self, photo)
        tokens = encoded.inputs.reference_tokens.clone()
        tokens[0, 5, 5] = float("nan")
        return encoded._replace(inputs=encoded.inputs._replace(reference_tokens=tokens))

    monkeypatch.setattr(DescriptorEncoder, "encode", spoilt)
    result = run("prune", photo, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "reference_tokens: expected finite numbers" in result.output
    assert not (tmp_path / "out").exists()


def test_a_hugging_face_tower_with_its_own_pruner(photo: Path, tmp_path: Path) -> None:
    tower = transformers.CLIPVisionConfig(
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=6,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
    )
    transformers.CLIPVisionModel(tower).save_pretrained(tmp_path / "tower")
    torch.save({"state_dict": random_pruner().state_dict()}, tmp_path / "weights.pth")
    (tmp_path / "config.json").write_text(small_config().to_json())
    for options in ([], ["--config", tmp_path / "config.json"], ["--padding", "random"]):
        result = run(
            "prune",
            photo,
            *("--model", tmp_path / "tower", "--checkpoint", tmp_path / "weights.pth"),
            *("--budget", 5, "--output", tmp_path / "out"),
            *options,
        )
        assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "garden-pruned.json").read_text())
    assert len(record["ids"]) == 5 and record["grid"] == [4, 4]
    assert record["encoder"] == str(tmp_path / "tower")


def test_photos_open_as_people_keep_them(tmp_path: Path) -> None:
    red_left = np.zeros((20, 40, 3), dtype=np.uint8)
    red_left[:, :20, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter, as phones store portraits
    Image.fromarray(red_left).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = open_photo(tmp_path / "turned.jpg")
    assert upright.size == (20, 40)
    top = upright.getpixel((10, 5))
    assert isinstance(top, tuple) and top[0] > 200

    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_photo(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.fromarray(np.full((8, 8), 32768, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert open_photo(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)
    for mode in ("L", "P", "1", "CMYK"):
        Image.new(mode, (8, 8)).convert(mode).save(tmp_path / "mode.tiff")
        assert open_photo(tmp_path / "mode.tiff").mode == "RGB"
