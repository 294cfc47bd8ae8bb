"""Features on disk: what is read back, and what is continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ocvtp_kernels.cli.photo import open_photo
from ocvtp_kernels.training.feature_encoders import make_reference_encoder
from ocvtp_kernels.training.feature_writer import find_images
from ocvtp_kernels.training.features import FeatureFolder, sha256_of
from ocvtp_kernels.vlm.encoder import DescriptorEncoder
from tests.training.feature_cases import WIDTH, Averages, contents, expect, make_images, write


@pytest.fixture
def images(tmp_path: Path) -> Path:
    make_images(tmp_path / "images", 7)
    return tmp_path / "images"


def test_reads_back_what_the_encoder_said(images: Path, tmp_path: Path) -> None:
    assert write(images, tmp_path / "out") == 0
    folder = FeatureFolder(tmp_path / "out")
    assert len(folder) == 7 and folder.paths == find_images(images)
    assert (folder.num_tokens, folder.width, folder.grid) == (16, WIDTH, (4, 4))
    for index, name in enumerate(folder.paths):
        tokens = folder[index]
        assert tokens.dtype == torch.float16 and tokens.shape == (16, WIDTH)
        assert torch.equal(tokens, expect(images, name))
    assert torch.equal(folder[-1], folder[6])
    for index in (7, -8):
        with pytest.raises(IndexError, match=r"expected -7 to 6"):
            folder[index]
    folder.verify()


def test_the_manifest_names_what_there_is(images: Path, tmp_path: Path) -> None:
    write(images, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["format"] == "ocvtp-features" and manifest["version"] == 2
    assert manifest["encoder"] == "averages" and manifest["dtype"] == "float16"
    assert [shard["count"] for shard in manifest["shards"]] == [3, 3, 1]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"manifest.json", *(shard["file"] for shard in manifest["shards"])}
    for shard in manifest["shards"]:
        path = tmp_path / "out" / shard["file"]
        assert sha256_of(path) == shard["sha256"]
        assert shard["bytes"] == [(images / name).stat().st_size for name in shard["images"]]
        assert shard["image_sha256"] == [sha256_of(images / name) for name in shard["images"]]
        tensors = load_file(path)
        assert list(tensors) == ["tokens"]
        assert tensors["tokens"].shape == (shard["count"], 16, WIDTH)
        # The last shard is not padded to a whole one.
        assert path.stat().st_size < shard["count"] * 16 * WIDTH * 2 + 200


def test_the_descriptor_in_batches_is_the_descriptor(tmp_path: Path) -> None:
    names = make_images(tmp_path / "images", 3)
    encoder = make_reference_encoder(DescriptorEncoder())
    assert write(tmp_path / "images", tmp_path / "out", encoder) == 0
    folder = FeatureFolder(tmp_path / "out")
    assert folder.grid == (24, 24) and folder.manifest["model"] is None
    for index, name in enumerate(names):
        photo = open_photo(tmp_path / "images" / name)
        tokens = DescriptorEncoder().encode(photo).inputs.reference_tokens[0]
        torch.testing.assert_close(folder[index].float(), tokens, rtol=1e-3, atol=1e-5)


def test_what_is_there_is_not_encoded_again(images: Path, tmp_path: Path) -> None:
    write(images, tmp_path / "out")
    before = contents(tmp_path / "out")
    again = Averages()
    assert write(images, tmp_path / "out", again) == 0
    assert again.batches == [] and contents(tmp_path / "out") == before


def test_later_images_are_appended(images: Path, tmp_path: Path) -> None:
    write(images, tmp_path / "out", limit=4)
    first = contents(tmp_path / "out")
    make_images(images / "a" / "deep er", 2, start=20)
    write(images, tmp_path / "out", shard_size=4)
    folder = FeatureFolder(tmp_path / "out")
    added = ["004.png", "005.png", "006.png", "a/deep er/020.png", "a/deep er/021.png"]
    assert folder.paths == ["000.png", "001.png", "002.png", "003.png", *added]
    assert [shard["count"] for shard in folder.manifest["shards"]] == [3, 1, 4, 1]
    for index, name in enumerate(folder.paths):
        assert torch.equal(folder[index], expect(images, name))
    now = contents(tmp_path / "out")
    assert all(now[name] == data for name, data in first.items() if name != "manifest.json")


def test_a_changed_image_is_not_taken_for_the_old_one(images: Path, tmp_path: Path) -> None:
    write(images, tmp_path / "out")
    Image.new("RGB", (50, 40)).save(images / "004.png")
    with pytest.raises(ValueError, match=r"004\.png: has \d+ bytes"):
        write(images, tmp_path / "out")


def test_a_shard_that_the_manifest_does_not_name_is_overwritten(
    images: Path, tmp_path: Path
) -> None:
    write(images, tmp_path / "whole")
    out = tmp_path / "out"
    write(images, out, limit=3)
    (out / "features-00001.safetensors").write_bytes(b"of a run that was killed")
    (out / ".features-00001-0a1b2c3d.safetensors").write_bytes(b"half")
    (out / ".manifest-0a1b2c3d.json").write_bytes(b"half")
    write(images, out)
    assert contents(out) == contents(tmp_path / "whole")


def test_batches_end_with_their_shard(images: Path, tmp_path: Path) -> None:
    encoder = Averages()
    write(images, tmp_path / "out", encoder)
    assert encoder.batches == [2, 1, 2, 1, 1]


def test_what_cannot_be_read_is_named_and_tried_again(images: Path, tmp_path: Path) -> None:
    whole = (images / "003.png").read_bytes()
    (images / "003.png").write_bytes(whole[: len(whole) // 2])
    (images / "0.jpg").write_text("not an image")
    (images / "gone.webp").symlink_to(images / "nowhere.webp")
    reports: dict[str, str | None] = {}
    assert write(images, tmp_path / "out", report=reports.__setitem__) == 3
    folder = FeatureFolder(tmp_path / "out")
    bad = ["0.jpg", "003.png", "gone.webp"]
    assert folder.paths == [name for name in find_images(images) if name not in bad]
    assert [one["path"] for one in folder.manifest["skipped"]] == bad
    assert all(reports[one["path"]] == one["reason"] for one in folder.manifest["skipped"])
    assert str(tmp_path) not in folder.manifest["skipped"][0]["reason"]
    assert sum(reason is None for reason in reports.values()) == 6

    (images / "003.png").write_bytes(whole)
    (images / "gone.webp").unlink()
    assert write(images, tmp_path / "out") == 1
    folder = FeatureFolder(tmp_path / "out")
    assert [one["path"] for one in folder.manifest["skipped"]] == ["0.jpg"]
    assert folder.paths[-1] == "003.png" and torch.equal(folder[6], expect(images, "003.png"))


@pytest.mark.parametrize("bad", [float("nan"), 1e5])
def test_tokens_that_float16_cannot_hold_are_skipped(
    images: Path, tmp_path: Path, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, spoilt = Averages.encode, expect(images, "001.png").float()

    def spoil(self: Averages, pixels: Tensor) -> Tensor:
        tokens = encode(self, pixels)
        same = (tokens.half().float() == spoilt).flatten(1).all(dim=1)
        return torch.where(same[:, None, None], bad, tokens)

    monkeypatch.setattr(Averages, "encode", spoil)
    assert write(images, tmp_path / "out") == 1
    folder = FeatureFolder(tmp_path / "out")
    assert "001.png" not in folder.paths and len(folder) == 6
    assert "finite float16" in folder.manifest["skipped"][0]["reason"]


def test_names_in_any_script_and_of_any_bytes(tmp_path: Path) -> None:
    images = tmp_path / "bild er"
    names = ["grün/日本 語.png", "grün/ü.PNG", "a\udcff.png"]
    make_images(images / "grün", 1)
    data = (images / "grün" / "000.png").read_bytes()
    (images / "grün" / "000.png").unlink()
    for name in names:
        try:
            (images / name).write_bytes(data)
        except OSError:
            pytest.skip("the file system takes no such name")
    (images / "bad\udcfe.jpg").write_text("no image")
    reports: dict[str, str | None] = {}
    assert write(images, tmp_path / "out", report=reports.__setitem__) == 1
    folder = FeatureFolder(tmp_path / "out")
    assert sorted(folder.paths) == sorted(names)
    (reports["bad\udcfe.jpg"] or "").encode()
    train, val = folder.split()
    assert sorted(train + val) == [0, 1, 2]


def test_only_images_are_found(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/c.webp", "a.b/d.Jpeg", "e.txt", ".f.png", ".g/h.png", "png", "i.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == ["a.b/d.Jpeg", "a/c.webp", "b.JPG"]


@pytest.mark.parametrize(
    "change",
    [
        {"model": "some/model"},
        {"reference_layer": 7},
        {"weights_sha256": "ab"},
        {"encoder": "dinov2"},
        {"width": 12},
    ],
)
def test_features_of_another_encoder_are_not_mixed(
    images: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    write(images, tmp_path / "out", limit=4)
    before = contents(tmp_path / "out")
    (key, value), *_ = change.items()
    with pytest.raises(ValueError, match=f"another {key} .*, now {value!r}; choose another"):
        write(images, tmp_path / "out", Averages(**change))
    assert contents(tmp_path / "out") == before
