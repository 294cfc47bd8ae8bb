from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

import ocvtp_kernels as ocvtp
from ocvtp_kernels.cli import app, report
from ocvtp_kernels.cli.photo import open_photo
from ocvtp_kernels.vlm.encoder import DescriptorEncoder
from tests.cases import random_pruner, small_config
from tests.cli.mutated import make_damaged


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


def skipped_lines(result: Result) -> list[str]:
    return [line for line in result.output.splitlines() if line.startswith("skipped ")]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to decode frame 0:\n  out of\n  luck"),
        AssertionError(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["reader", "encoder", "pruner"])
def test_whatever_one_photo_brings_about_the_others_go_on(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    odd = make_photo(tmp_path / "odd.png", size=(31, 30))
    last = make_photo(tmp_path / "last.png", seed=2)
    owner, name = {
        "reader": (Image.Image, "convert"),
        "encoder": (DescriptorEncoder, "prepare"),
        "pruner": (report, "coverage"),
    }[where]
    before, calls = getattr(owner, name), iter(range(99))

    def fail(*arguments: object, **options: object) -> object:
        image = next((one for one in arguments if isinstance(one, Image.Image)), None)
        if image is not None and image.size == (31, 30):
            raise error
        if where == "pruner" and next(calls) == 1:
            raise error
        return before(*arguments, **options)

    monkeypatch.setattr(owner, name, fail)
    result = run("prune", photo, odd, last, "--output", tmp_path / "out")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    (line,) = skipped_lines(result)
    reason = line.removeprefix(f"skipped {odd}: ").removeprefix("not a whole image: ")
    assert reason == " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    names = {path.name for path in (tmp_path / "out").glob("*.json")}
    assert names == {"garden-pruned.json", "last-pruned.json"}


@pytest.mark.parametrize("where", ["prepare", "encode"])
def test_an_interrupt_ends_the_run(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    seen = []

    def interrupt(*arguments: object) -> None:
        seen.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(DescriptorEncoder, where, interrupt)
    result = run("prune", photo, photo, "--output", tmp_path / "out")
    assert len(seen) == 1 and result.exit_code not in (0, 1, 2)
    assert not skipped_lines(result)


def test_a_full_disk_is_the_reason_and_nothing_half_is_left(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(self: Image.Image, path: Path, *arguments: object, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", fill)
    result = run("prune", photo, "--output", tmp_path / "out")
    assert result.exit_code == 1 and "garden.png: [Errno 28] No space left" in result.output
    assert not list((tmp_path / "out").iterdir())


def test_odd_files_among_photos_are_skipped_in_a_line_each(photo: Path, tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0"
    exif += struct.pack("<HHIHH", 274, 3, 1, 6, 0) + struct.pack("<HHII", 282, 10, 1, 38)
    whole = tmp_path / "whole.jpg"
    Image.open(photo).save(whole, exif=exif + struct.pack("<Iii", 0, -1, 7))
    texture = tmp_path / "texture.dds"
    header = struct.pack("<7I", 124, 0x1007, 4, 4, 0, 0, 0) + bytes(44)
    header += struct.pack("<8I", 32, 1, 0, 0, 0, 0, 0, 0) + bytes(20)
    texture.write_bytes(b"DDS " + header + bytes(64))
    loop, folder, empty = (tmp_path / name for name in ("loop.png", "folder.png", "empty.png"))
    loop.symlink_to(loop)
    folder.mkdir()
    empty.touch()
    bad = [texture, loop, folder, empty, tmp_path / "none.png"]
    result = run("prune", *bad, whole, photo, "--output", tmp_path / "out")
    assert result.exit_code == 1
    lines = skipped_lines(result)
    assert len(lines) == len(bad)
    for path, line in zip(bad, lines, strict=True):
        assert line.startswith(f"skipped {path}: ") and len(line) > len(f"skipped {path}: no")
    assert (tmp_path / "out" / "whole-pruned.json").exists()
    assert (tmp_path / "out" / "garden-pruned.json").exists()


def test_names_that_are_no_text_are_printed_in_one_line(photo: Path, tmp_path: Path) -> None:
    names = [b"a\xff.png", b"b\nc.png", "d\u2028e.png".encode(), b"f  g.png"]
    for name in names:
        os.link(photo, os.fsencode(tmp_path) + b"/" + name)
    bad = tmp_path / os.fsdecode(b"\xfe\n.png")
    bad.touch()
    paths = [tmp_path / os.fsdecode(name) for name in names]
    result = run("prune", *paths, bad, "--output", tmp_path / "out")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert len(list((tmp_path / "out").glob("*.json"))) == len(names)
    lines = result.stdout.splitlines()
    assert len(lines) == 2 * len(names) + 1 and f"{tmp_path / 'out'}/f  g-pruned.png" in lines


@pytest.mark.slow
def test_a_folder_of_damaged_photos(photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    paths = []
    for number, (kind, data) in enumerate(make_damaged(60, 2)):
        paths.append(folder / f"{number}.{kind.lower()}")
        paths[-1].write_bytes(data)
    result = run("prune", *paths, photo, "--output", tmp_path / "out")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    pruned = len(list((tmp_path / "out").glob("*.json")))
    assert pruned + len(skipped_lines(result)) == 61 and pruned > 5
    assert (tmp_path / "out" / "garden-pruned.json").exists()


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
