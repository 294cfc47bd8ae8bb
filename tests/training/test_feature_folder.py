"""`FeatureFolder`: damage, workers and the split."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from ocvtp_kernels.training.features import FeatureFolder
from tests.training.feature_cases import WIDTH, expect, make_images, write


@pytest.fixture
def images(tmp_path: Path) -> Path:
    make_images(tmp_path / "images", 7)
    return tmp_path / "images"


def test_damage_is_named(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(images, out)
    second = out / "features-00001.safetensors"
    data = second.read_bytes()

    second.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"features-00001\.safetensors: expected SHA-256"):
        FeatureFolder(out).verify()

    for damage in (data[: len(data) // 2], b"", b"nothing of the kind"):
        second.write_bytes(damage)
        with pytest.raises(ValueError, match=r"features-00001\.safetensors: expected a safetens"):
            FeatureFolder(out)[3]
    for tensors, words in (
        ({"tokens": torch.zeros(3, 16, WIDTH)}, r"expected F16 \[3, 16, 6\].*got F32"),
        ({"tokens": torch.zeros(2, 16, WIDTH).half()}, r"got F16 \[2, 16, 6\]"),
        ({"others": torch.zeros(3, 16, WIDTH).half()}, r"expected one tensor 'tokens'"),
    ):
        save_file(tensors, second)
        with pytest.raises(ValueError, match=rf"features-00001\.safetensors: .*{words}"):
            FeatureFolder(out)[4]
    second.unlink()
    folder = FeatureFolder(out)
    assert torch.equal(folder[0], expect(images, "000.png"))
    for read in (lambda: folder[3], folder.verify, lambda: write(images, out)):
        with pytest.raises(FileNotFoundError, match=r"features-00001\.safetensors"):
            read()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format", "zip", "expected a manifest of format 'ocvtp-features'"),
        ("version", 3, "expected version 1 or 2, got 3"),
        ("version", True, "expected version 1 or 2, got True"),
        ("version", "2", "expected version 1 or 2, got '2'"),
        ("grid", [4, 5], r"grid: expected rows and columns of 16 tokens, got \[4, 5\]"),
        ("grid", [4], "grid: expected rows"),
        ("width", "6", "width: expected int, got '6'"),
        ("dtype", "float32", "dtype: expected float16"),
        ("shards", {}, "shards: expected list"),
        ("shards", [3], "shard 0: expected an object"),
        ("skipped", None, "skipped: expected list"),
    ],
)
def test_a_wrong_manifest_is_refused(
    images: Path, tmp_path: Path, key: str, value: Any, words: str
) -> None:
    write(images, tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(ValueError, match=rf"manifest\.json: .*{words}"):
        FeatureFolder(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("file", "../../secret.safetensors", "expected features-00000"),
        ("count", 2, "expected as many images"),
        ("images", None, "images: expected list"),
    ],
)
def test_a_wrong_shard_entry_is_refused(
    images: Path, tmp_path: Path, key: str, value: Any, words: str
) -> None:
    write(images, tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0][key] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=rf"manifest\.json: shard 0: {words}"):
        FeatureFolder(tmp_path)


def test_no_manifest_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"manifest\.json: no such file"):
        FeatureFolder(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": ')
    with pytest.raises(ValueError, match="expected JSON"):
        FeatureFolder(tmp_path)


def test_what_is_read_is_the_readers_own(images: Path, tmp_path: Path) -> None:
    write(images, tmp_path)
    folder = FeatureFolder(tmp_path)
    folder[0].zero_()
    assert torch.equal(folder[0], expect(images, "000.png"))


def test_travels_to_workers(images: Path, tmp_path: Path) -> None:
    write(images, tmp_path / "out")
    folder = FeatureFolder(tmp_path / "out")
    truth = torch.stack([folder[index] for index in range(7)])
    copy = pickle.loads(pickle.dumps(folder))
    assert len(copy) == 7 and torch.equal(copy[5], truth[5])
    loader: DataLoader[Tensor] = DataLoader(folder, batch_size=4, num_workers=2)  # type: ignore[arg-type]
    assert torch.equal(torch.cat(list(loader)), truth)


def pretend(folder: FeatureFolder, paths: list[str]) -> FeatureFolder:
    folder.paths = paths
    return folder


def test_a_split_stays_when_images_are_added(images: Path, tmp_path: Path) -> None:
    write(images, tmp_path)
    folder = FeatureFolder(tmp_path)
    paths = [f"photos/{number}.jpg" for number in range(4000)]
    train, val = pretend(folder, paths).split(0.05, seed=3)
    assert train == sorted(train) and sorted(train + val) == list(range(4000))
    # Five standard deviations of 4000 draws at 5 %.
    assert abs(len(val) - 200) < 70
    assert folder.split(0.05, seed=3) == (train, val) != folder.split(0.05, seed=4)
    for share in (0.05, 0.5, 0.95):
        train, val = pretend(folder, paths).split(share)
        for count in (1, 2, 3, 10, 500):
            few_train, few_val = pretend(folder, paths[:count]).split(share)
            # Of one image alone there is nothing to validate on, or to train on.
            assert set(few_train) <= set(train) and set(few_val) <= set(val)
            assert count < 2 or (few_train and few_val)
    # Beyond the first two, the order of the images does not matter.
    mixed = paths[:2] + random.Random(0).sample(paths[2:], len(paths) - 2)
    _, other = pretend(folder, mixed).split()
    _, val = pretend(folder, paths).split()
    assert {mixed[index] for index in other} == {paths[index] for index in val}
    for share in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match="val_share: expected more than 0"):
            folder.split(share)
