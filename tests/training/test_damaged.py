"""Files of features and of runs that are cut off or hold something else: an error with the path."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ocvtp_kernels.training.checkpoints import (
    MODEL,
    OPTIMIZER,
    STATE,
    Snapshot,
    load_snapshot,
    save_snapshot,
)
from ocvtp_kernels.training.config import TrainConfig, read_config
from ocvtp_kernels.training.evaluation import Trained
from ocvtp_kernels.training.feature_writer import FeatureWriter
from ocvtp_kernels.training.features import FeatureFolder
from ocvtp_kernels.training.folder import RunFolder
from ocvtp_kernels.training.log import Log, Row, read_log
from ocvtp_kernels.training.loop import Trainer
from tests.training.cases import random_autoencoder, tiny_config
from tests.training.feature_cases import Averages, make_images, write
from tests.training.runs import features, write_config, write_features

# What JSON may hold in a value's place; and nothing at all.
ABSENT = object()
OTHERS = (
    None,
    True,
    0,
    -1,
    2.5,
    float("nan"),
    10**400,
    "",
    "x",
    [],
    [1],
    [[]],
    {},
    {"a": 1},
    ABSENT,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys and indices that lead to every value within a JSON value."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield (*at, key)
        yield from places(inner, (*at, key))


def changed(value: Any, at: tuple[Any, ...], other: Any) -> Any:
    """A copy with another value at one place."""
    value = copy.deepcopy(value)
    within = value
    for key in at[:-1]:
        within = within[key]
    if other is ABSENT:
        del within[at[-1]]
    else:
        within[at[-1]] = other
    return value


@pytest.fixture
def encoded(tmp_path: Path) -> Path:
    """Features of 3 images, one of them skipped."""
    make_images(tmp_path / "images", 3)
    (tmp_path / "images" / "002.png").write_text("no image")
    write(tmp_path / "images", tmp_path / "features", shard_size=1)
    return tmp_path / "features"


def test_a_manifest_cut_off_anywhere(encoded: Path) -> None:
    path = encoded / "manifest.json"
    # But for the end of its last line.
    for length in reversed(range(path.stat().st_size - 1)):
        os.truncate(path, length)
        with pytest.raises(ValueError, match=r"manifest\.json: expected"):
            FeatureFolder(encoded)


@pytest.mark.parametrize("text", ["[" * 100_000, "null", "[]", '"manifest"', "\ufeff{}", "3"])
def test_a_manifest_that_is_none(encoded: Path, text: str) -> None:
    (encoded / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"manifest\.json: expected"):
        FeatureFolder(encoded)


def test_whatever_a_manifest_holds_is_an_error_with_its_path_or_taken(encoded: Path) -> None:
    path = encoded / "manifest.json"
    manifest = json.loads(path.read_text())
    refused = 0
    for at in places(manifest):
        for other in OTHERS:
            path.unlink()
            path.write_text(json.dumps(changed(manifest, at, other)))
            try:
                folder = FeatureFolder(encoded)
                folder.verify()
                folder.image_files()
                FeatureWriter(encoded, Averages(), 1)
            except (ValueError, FileNotFoundError) as error:
                assert str(encoded) in str(error), (at, other)
                refused += 1
    assert refused > 500


def snapshot() -> Snapshot:
    state = {
        "step": 3,
        "best": 0.5,
        "best_epoch": 1,
        "bad_epochs": 0,
        "log_bytes": 9,
        "seconds": 1.0,
    }
    return Snapshot({"w": torch.ones(2)}, {"step/w": torch.tensor(3.0)}, state)


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER, STATE])
def test_a_checkpoint_cut_off_anywhere_is_passed_over(tmp_path: Path, name: str) -> None:
    earlier = snapshot()
    earlier.state["step"] = 2
    save_snapshot(tmp_path, 2, earlier)
    path = save_snapshot(tmp_path, 3, snapshot()) / name
    # But for the end of the last line of JSON.
    for length in reversed(range(path.stat().st_size - (name == STATE))):
        os.truncate(path, length)
        with pytest.warns(UserWarning, match="step-00000003: passed over"):
            there = load_snapshot(tmp_path)
        assert there is not None and there.state["step"] == 2, length
    path.unlink()
    with pytest.warns(UserWarning, match="step-00000003: passed over"):
        assert load_snapshot(tmp_path) is not None


@pytest.mark.filterwarnings("ignore:.*passed over")
def test_a_checkpoint_of_another_state_is_passed_over(tmp_path: Path) -> None:
    path = save_snapshot(tmp_path, 3, snapshot()) / STATE
    state = json.loads(path.read_text())
    refused = set()
    for (key,) in places(state):
        for other in OTHERS:
            path.unlink()
            path.write_text(json.dumps(changed(state, (key,), other)))
            there = load_snapshot(tmp_path)
            if there is None:
                refused.add((key, str(other)))
            else:
                assert key != "step" and type(other) is not str
    for key in state:
        for other in (None, "x", [1], {}, -1, ABSENT):
            allowed = other == -1 and key in ("best", "seconds")
            assert ((key, str(other)) in refused) != allowed, (key, other)
    for text in ("null", "[]", "3", '"step"', "{}"):
        path.write_text(text)
        assert load_snapshot(tmp_path) is None


def a_run(folder: Path) -> Trainer:
    """A run of three steps, with a checkpoint after each."""
    tokens = features(write_features(folder / "features", count=8))
    config = TrainConfig(epochs=3, batch_size=4, slots=(2,), checkpoint_every=1)
    return Trainer(tokens, RunFolder(folder / "run"), config, tiny_config())


@pytest.mark.filterwarnings("ignore:.*passed over")
@pytest.mark.parametrize(
    ("file", "change"),
    [
        (MODEL, lambda own: {**own, "aggregat.heads": torch.ones(1)}),
        (MODEL, lambda own: {k: v for k, v in own.items() if k != "decode.mask_token"}),
        (MODEL, lambda own: {**own, "initializ.mean": torch.ones(1, 1, 9)}),
        (MODEL, lambda own: {**own, "initializ.mean": own["initializ.mean"].int()}),
        (OPTIMIZER, lambda own: {**own, "step/aggregat.heads": torch.tensor(1.0)}),
        (OPTIMIZER, lambda own: {**own, "exp_avg/initializ.mean": torch.ones(9)}),
        (OPTIMIZER, lambda own: {k: v for k, v in own.items() if k != "step/initializ.mean"}),
        (OPTIMIZER, lambda own: {f"x{key}": value for key, value in own.items()}),
    ],
)
def test_a_checkpoint_of_another_model_is_passed_over(
    tmp_path: Path, file: str, change: Any
) -> None:
    from safetensors.torch import load_file, save_file

    trainer = a_run(tmp_path)
    trainer.run()
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    own = load_file(checkpoints[-1] / file)
    save_file(change(own), checkpoints[-1] / file)
    with pytest.warns(UserWarning, match=f"{checkpoints[-1].name}: passed over"):
        again = a_run(tmp_path)
    assert again.step == trainer.step - 1
    again.run()
    after = again.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in trainer.model.state_dict().items())


def test_settings_of_a_run_cut_off_anywhere(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    identity = {"train": {"lr": 0.1}, "pruner": {"init_num": 3}, "data": {"contents": "ab"}}
    folder.prepare(identity, is_fresh=False)
    whole = folder.run.read_text()
    for length in reversed(range(len(whole) - 1)):
        os.truncate(folder.run, length)
        with pytest.raises(ValueError, match=r"run\.json: expected a JSON object"):
            folder.prepare(identity, is_fresh=False)
    folder.prepare(identity, is_fresh=True)
    assert folder.run.read_text() == whole


def test_settings_of_a_run_that_are_none(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    identity = {"train": {"lr": 0.1}, "pruner": {"init_num": 3}, "data": {"contents": "ab"}}
    folder.prepare(identity, is_fresh=False)
    for at in places(identity):
        for other in OTHERS:
            folder.run.unlink()
            folder.run.write_text(json.dumps(changed(identity, at, other)))
            with pytest.raises(ValueError, match=r"run\.json: |^output: .* has a run that differs"):
                folder.prepare(identity, is_fresh=False)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"train": 3}', "null", '{"train": {"lr": 1}}'])
def test_settings_beside_a_checkpoint_to_evaluate(tmp_path: Path, text: str) -> None:
    folder = features(write_features(tmp_path / "features"))
    path = tmp_path / "best.safetensors"
    random_autoencoder().float().save_checkpoint(path)
    device = torch.device("cpu")
    assert Trained.load(path, folder, device).target_scale == 1
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json: "):
        Trained.load(path, folder, device)
    for scale in (0, -1, None, "2", True, float("inf"), [2]):
        run = {"train": {"target_scale": scale}, "pruner": {}}
        (tmp_path / "run.json").write_text(json.dumps(run))
        with pytest.raises(ValueError, match=r"run\.json: target_scale: expected a number above"):
            Trained.load(path, folder, device)


def test_a_log_cut_off_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    size = Log(path, 0).append(
        [Row(1, 1, 4, 0.5, 1e-3, None, 0.1), Row(2, 1, 4, 0.25, 1e-3, 0.5, 0.2)]
    )
    assert len(read_log(path)) == 2
    for length in reversed(range(size)):
        os.truncate(path, length)
        with pytest.raises(ValueError, match=rf"log\.csv: expected at least {size} bytes"):
            Log(path, size)


@pytest.mark.parametrize(
    "row",
    [b"1,1,4\n", b"1,1,4,x,1,,0\n", b"1,1,4,1,1,,0,9\n", b"\xff\n", b"\x00\n", b"1.5,1,4,1,1,,0\n"],
)
def test_a_damaged_log(tmp_path: Path, row: bytes) -> None:
    path = tmp_path / "log.csv"
    size = Log(path, 0).append([Row(1, 1, 4, 0.5, 1e-3, None, 0.1)])
    path.write_bytes(path.read_bytes() + row)
    for read in (lambda: read_log(path), lambda: Log(path, size + len(row))):
        with pytest.raises(ValueError, match=r"log\.csv: line \d"):
            read()
    # What is behind the checkpoint does not count.
    Log(path, size)
    assert len(read_log(path)) == 1


TOML = (
    'slots = [8, 16]\nlr = 1e-3\nstart = "kmeans"\n[pruner]\nenc_dims = [8,\n 4]\nenc_ln = "pre"\n'
)


def test_a_config_cut_off_anywhere(tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.json")
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        with pytest.raises(ValueError, match=r"c\.json: expected a JSON object"):
            read_config(path)


def test_a_config_in_toml_cut_off_anywhere(tmp_path: Path) -> None:
    pytest.importorskip("tomllib")
    path = tmp_path / "c.toml"
    path.write_text(TOML)
    refused = 0
    for length in reversed(range(len(TOML))):
        os.truncate(path, length)
        try:
            read_config(path)  # TOML that ends with a whole value is whole
        except ValueError as error:
            assert str(path) in str(error), length
            refused += 1
    assert refused > len(TOML) / 2
    for data in (b"\xff = 1", b"a = " + b"[" * 100_000, b'a = "\xe9"', b"\x00", b"a = 1\na = 2"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"c\.toml: expected TOML"):
            read_config(path)


@pytest.mark.parametrize("values", [None, True, 3, 0.5, "epochs", [1], [[]]])
def test_settings_that_are_no_keys_and_values(values: Any) -> None:
    with pytest.raises(ValueError, match=r"^config: expected keys and values, got"):
        TrainConfig.from_dict(values)


def test_a_folder_in_a_files_place(tmp_path: Path) -> None:
    for name in ("manifest.json", "c.json", "c.toml"):
        (tmp_path / name).mkdir()
    for read in (
        lambda: FeatureFolder(tmp_path),
        lambda: read_config(tmp_path / "c.json"),
        lambda: read_config(tmp_path / "c.toml"),
    ):
        with pytest.raises(OSError, match=str(tmp_path)):
            read()
    shutil.rmtree(tmp_path / "manifest.json")
