"""Features are what their manifest says, and a run goes on with those that it began with."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ocvtp_kernels.cli.photo import open_photo
from ocvtp_kernels.training import feature_writer
from ocvtp_kernels.training.config import TrainConfig
from ocvtp_kernels.training.data import Split
from ocvtp_kernels.training.feature_writer import FeatureWriter, find_changes
from ocvtp_kernels.training.features import MANIFEST, FeatureFolder, ImageFile, sha256_of
from ocvtp_kernels.training.folder import RunFolder
from ocvtp_kernels.training.loop import Trainer
from ocvtp_kernels.training.run import train
from tests.training.cases import tiny_config
from tests.training.feature_cases import Averages, contents, expect, make_images, write
from tests.training.runs import features, write_features

SETTINGS = TrainConfig(epochs=1, batch_size=4, slots=(2,), warmup_epochs=0)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def edit_manifest(folder: Path, edit: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def save_again(path: Path) -> None:
    """The same numbers in a file of other bytes."""
    save_file(load_file(path), path, {"by": "another writer"})


def swap(folder: Path) -> None:
    first, second = (folder / f"features-0000{number}.safetensors" for number in (0, 1))
    shutil.move(first, folder / "aside")
    shutil.move(second, first)
    shutil.move(folder / "aside", second)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of the last number": lambda folder: flip(folder / "features-00002.safetensors", -1),
    "a bit of the first shard": lambda folder: flip(folder / "features-00000.safetensors", 200),
    "cut off": lambda folder: (folder / "features-00001.safetensors").write_bytes(b"\0" * 100),
    "empty": lambda folder: (folder / "features-00001.safetensors").write_bytes(b""),
    "another writer": lambda folder: save_again(folder / "features-00001.safetensors"),
    "two changed places": swap,
    "the manifest": lambda folder: edit_manifest(
        folder, lambda manifest: manifest["shards"][0].update(sha256="0" * 64)
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_does_not_begin_or_go_on_with_damaged_features(tmp_path: Path, damage: str) -> None:
    folder = write_features(tmp_path / "features")
    train(features(folder), tmp_path / "run", SETTINGS, tiny_config())
    before = contents(tmp_path / "run" / "checkpoints" / "step-00000005")
    DAMAGES[damage](folder)
    for output, is_fresh in (("run", False), ("run", True), ("new", False)):
        with pytest.raises(ValueError, match=r"features/features-0000\d\.safetensors: expected"):
            train(features(folder), tmp_path / output, SETTINGS, tiny_config(), is_fresh=is_fresh)
    assert contents(tmp_path / "run" / "checkpoints" / "step-00000005") == before
    assert not (tmp_path / "new").exists()


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_features(tmp_path / "features")
    (folder / "features-00001.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"features-00001\.safetensors"):
        train(features(folder), tmp_path / "run", SETTINGS, tiny_config())


def test_every_damaged_shard_is_found(tmp_path: Path) -> None:
    folder = write_features(tmp_path / "features", count=45)
    flip(folder / "features-00000.safetensors", -1)
    flip(folder / "features-00003.safetensors", 10)
    (folder / "features-00004.safetensors").unlink()
    errors = list(features(folder).damaged_shards())
    assert [type(error) for error in errors] == [ValueError, ValueError, FileNotFoundError]
    for error, number in zip(errors, (0, 3, 4), strict=True):
        assert str(folder / f"features-0000{number}.safetensors") in str(error)


def write_again(folder: Path) -> None:
    path = folder / "features-00001.safetensors"
    save_again(path)
    digest = sha256_of(path)
    edit_manifest(folder, lambda manifest: manifest["shards"][1].update(sha256=digest))


def rename(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest["shards"][1]["images"].reverse())


def relabel(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(weights_sha256="ab"))


@pytest.mark.parametrize(
    ("make", "differ"),
    [
        (lambda path: write_features(path, seed=7), "^contents$"),
        (lambda path: write_features(path, count=25), "training images, contents$"),
        (lambda path: write_features(path, count=23), "training images, contents$"),
        (lambda path: write_again(write_features(path)), "^contents$"),
        (lambda path: rename(write_features(path)), "training images"),
        (lambda path: relabel(write_features(path)), "weights_sha256$"),
    ],
    ids=["other tokens", "grown", "fewer", "another writer", "other names", "another tower"],
)
def test_a_run_does_not_go_on_with_other_features(
    tmp_path: Path, make: Callable[[Path], object], differ: str
) -> None:
    train(
        features(write_features(tmp_path / "features")), tmp_path / "run", SETTINGS, tiny_config()
    )
    make(tmp_path / "others")
    with pytest.raises(ValueError, match="other features") as error:
        train(features(tmp_path / "others"), tmp_path / "run", SETTINGS, tiny_config())
    named = str(error.value).split("differ in ")[1].split(")")[0]
    assert re.search(differ, named), named


def test_it_goes_on_with_the_same_features_elsewhere(tmp_path: Path) -> None:
    folder = write_features(tmp_path / "features")
    whole = train(features(folder), tmp_path / "run", SETTINGS, tiny_config())
    shutil.copytree(folder, tmp_path / "copy")
    edit_manifest(tmp_path / "copy", lambda manifest: manifest.update(package_version="1"))
    again = train(features(tmp_path / "copy"), tmp_path / "run", SETTINGS, tiny_config())
    assert again.step == whole.step == 5


def test_contents_beyond_a_limit_count_too(tmp_path: Path) -> None:
    prints = set()
    for name, changes in (("a", {}), ("b", {"seed": 1}), ("c", {"count": 40}), ("d", {})):
        folder = features(write_features(tmp_path / name, **{"count": 30, **changes}))
        prints.add(Split(folder, 4, 0, limit=5).fingerprint(folder))
    assert len(prints) == 3


def test_another_sharding_is_other_features(tmp_path: Path) -> None:
    make_images(tmp_path / "images", 6)
    prints = set()
    for size in (2, 3, 3):
        output = tmp_path / f"{size}"
        write(tmp_path / "images", output, shard_size=size)
        folder = FeatureFolder(output)
        prints.add(Split(folder, 2, 0).fingerprint(folder))
    assert len(prints) == 2


def test_names_of_any_bytes_have_a_fingerprint(tmp_path: Path) -> None:
    folder = write_features(tmp_path / "features")

    def name(manifest: dict) -> None:  # type: ignore[type-arg]
        manifest["shards"][0]["images"][3] = "a\udcff.png"

    edit_manifest(folder, name)
    assert len(Split(features(folder), 4, 0).fingerprint(features(folder))) == 64


def test_a_run_of_an_earlier_version_says_so(tmp_path: Path) -> None:
    folder = features(write_features(tmp_path / "features"))
    train(folder, tmp_path / "run", SETTINGS, tiny_config())
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data": "0" * 64}))
    with pytest.raises(ValueError, match=r"no record, as of an earlier version\); give another"):
        train(folder, tmp_path / "run", SETTINGS, tiny_config())
    train(folder, tmp_path / "run", SETTINGS, tiny_config(), is_fresh=True)


class Stopped(Exception):
    """What the main process fails with."""


def test_other_processes_stop_with_the_main_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = features(write_features(tmp_path / "features"))
    trainer = Trainer(folder, RunFolder(tmp_path / "run"), SETTINGS, tiny_config())
    monkeypatch.setattr("accelerate.state.PartialState.is_main_process", False)

    def receive(objects: list[object], from_process: int = 0) -> list[object]:
        objects[0] = Stopped("shard 3")
        return objects

    monkeypatch.setattr("accelerate.utils.broadcast_object_list", receive)
    worked: list[int] = []
    with pytest.raises(Stopped, match="shard 3"):
        trainer.on_main_process(lambda: worked.append(1))
    assert not worked


def as_bmp(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("name", ["000.bmp", "000.ppm", "000.tif", "deep er/000.pgm", "000.png"])
def test_an_image_replaced_by_one_of_as_many_bytes(tmp_path: Path, name: str) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    make_images(images, 4)
    path = images / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".png":
        first, second = (path.read_bytes() + bytes([number]) for number in (1, 2))
    else:
        as_bmp(path, 1)
        first = path.read_bytes()
        as_bmp(path, 2)
        second = path.read_bytes()
    assert len(first) == len(second) and first != second
    path.write_bytes(first)
    times = path.stat()
    write(images, out)
    before = contents(out)
    path.write_bytes(second)
    # Not by the time of the change, which copying and unpacking set to anything.
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    make_images(images, 1, start=9)
    with pytest.raises(ValueError, match=rf"^{name}: has \d+ bytes as before, but other contents"):
        write(images, out)
    assert contents(out) == before
    path.write_bytes(first)
    write(images, out)
    path.unlink()
    write(images, out)
    assert name in FeatureFolder(out).paths


def test_images_are_recorded(tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    names = make_images(images, 7)
    write(images, out)
    recorded = FeatureFolder(out).image_files()
    assert recorded == {
        name: ImageFile((images / name).stat().st_size, sha256_of(images / name)) for name in names
    }
    (images / names[1]).write_bytes(b"short")
    flip(images / names[5], 40)
    (images / names[6]).unlink()
    changes = dict(find_changes(images, recorded, names))
    assert list(changes) == [names[1], names[5], names[6]]
    assert changes[names[1]].startswith("has 5 bytes, not ") and changes[names[6]] == "is missing"
    assert changes[names[5]].endswith("bytes as before, but other contents")


@pytest.mark.parametrize("same_size", [True, False])
def test_an_image_that_changes_while_it_is_read_is_skipped(tmp_path: Path, same_size: bool) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    make_images(images, 3)
    as_bmp(images / "a.bmp", 1)

    def open_and_change(path: Path) -> Image.Image:
        photo = open_photo(path)
        if path.name == "a.bmp":
            flip(path, -1)
            if not same_size:
                path.write_bytes(path.read_bytes() + b"\0")
        return photo

    writer = FeatureWriter(out, Averages(), 3)
    names = sorted(path.name for path in images.iterdir())
    assert feature_writer.write_features(images, names, writer, open_and_change) == 1
    folder = FeatureFolder(out)
    assert folder.manifest["skipped"] == [
        {"path": "a.bmp", "reason": "was changed while it was read"}
    ]
    write(images, out)
    folder = FeatureFolder(out)
    assert torch.equal(folder[len(folder) - 1], expect(images, "a.bmp"))


def make_version_1(folder: Path) -> None:
    def downgrade(manifest: dict) -> None:  # type: ignore[type-arg]
        manifest["version"] = 1
        for shard in manifest["shards"]:
            del shard["image_sha256"]

    edit_manifest(folder, downgrade)


def test_a_folder_of_version_1_is_read_and_goes_on(tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    names = make_images(images, 4)
    as_bmp(images / "a.bmp", 1)
    write(images, out)
    truth = [FeatureFolder(out)[index] for index in range(5)]
    make_version_1(out)
    folder = FeatureFolder(out)
    folder.verify()
    assert all(torch.equal(folder[index], tokens) for index, tokens in enumerate(truth))
    # Of these sizes alone are known.
    as_bmp(images / "a.bmp", 2)
    names += make_images(images, 2, start=10)
    write(images, out)
    recorded = FeatureFolder(out).image_files()
    known = {name for name, file in recorded.items() if file.sha256 is not None}
    assert known == {"010.png", "011.png"} and len(recorded) == 7
    assert json.loads((out / MANIFEST).read_text())["version"] == 2
    flip(images / "011.png", 40)
    with pytest.raises(ValueError, match=r"^011\.png: has \d+ bytes as before"):
        write(images, out)
    (images / "000.png").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"^000\.png: has 5 bytes, not "):
        write(images, out)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_nothing_is_added_beside_a_damaged_shard(tmp_path: Path, number: int) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    make_images(images, 7)
    write(images, out)
    flip(out / f"features-0000{number}.safetensors", -1)
    before = contents(out)
    make_images(images, 1, start=20)
    with pytest.raises(ValueError, match=rf"out/features-0000{number}\.safetensors: expected SHA"):
        write(images, out)
    assert contents(out) == before
