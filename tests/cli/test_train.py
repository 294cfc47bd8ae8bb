from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from ocvtp_kernels import OCPruner
from ocvtp_kernels.cli import app
from ocvtp_kernels.selectors.coverage import coverage, random_coverage
from ocvtp_kernels.training.config import TrainConfig, pruner_config, read_config
from ocvtp_kernels.training.features import FeatureFolder
from ocvtp_kernels.training.folder import RunFolder
from ocvtp_kernels.training.loop import Trainer
from tests.training.runs import ROOT, write_config, write_features


@pytest.fixture(autouse=True)
def no_accelerator_left() -> Iterator[None]:
    """Accelerate keeps one state a process, and refuses another precision."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_trains_and_goes_on(tmp_path: Path) -> None:
    folder = write_features(tmp_path / "features")
    config = write_config(tmp_path / "config.json")
    output = tmp_path / "run"
    arguments = ("train", "--features", folder, "--config", config, "--output", output)
    arguments += ("--slots", "2,4", "--mixed-precision", "bf16")
    result = run(*arguments, "--limit", 12)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(output / "pruner.safetensors")
    settings = json.loads((output / "run.json").read_text())["train"]
    # Options go before the file, and what neither says is as published.
    assert settings["limit"] == 12 and settings["slots"] == [2, 4] and settings["batch_size"] == 4
    assert settings["lr"] == 1e-3 and settings["mixed_precision"] == "bf16"
    OCPruner.from_checkpoint(output / "pruner.safetensors")
    log = (output / "log.csv").read_bytes()
    assert run(*arguments, "--limit", 12).exit_code == 0
    assert (output / "log.csv").read_bytes() == log
    refused = run(*arguments, "--limit", 13)
    assert refused.exit_code == 2 and "limit 12 there, 13 now" in refused.stderr
    assert run(*arguments, "--limit", 13, "--fresh").exit_code == 0


def test_every_option_is_a_key(tmp_path: Path) -> None:
    given = {
        "epochs": 2,
        "limit": 9,
        "batch_size": 3,
        "lr": 2e-3,
        "warmup_epochs": 0.5,
        "weight_decay": 0.1,
        "grad_clip": 2.0,
        "slots": "3",
        "patience": 2,
        "seed": 4,
        "start": "kmeans",
        "encode_lr": 0.5,
        "slots_lr": 0.0,
        "mixed_precision": "no",
        "target_scale": 2.0,
        "power_p": 0.0,
        "cap_w": 5.0,
        "norm_mode": "sum1",
        "reduce_channel": "sum",
        "checkpoint_every": 1,
    }
    folder = write_features(tmp_path / "features")
    config = write_config(tmp_path / "config.json")
    arguments = ["train", "--features", folder, "--config", config, "--output", tmp_path / "run"]
    for key, value in given.items():
        arguments += [f"--{key.replace('_', '-')}", value]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["train"]
    assert settings.keys() == given.keys() | {"start_lr", "end_lr"}
    assert {**given, "slots": [3]}.items() <= settings.items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "epochs: expected a whole number of at least 1, got 0"),
        (["--slots", "a"], "slots: expected whole numbers like 16,32, got 'a'"),
        (["--features", "nowhere"], "manifest.json"),
        (["--config", "nowhere.json"], "nowhere.json"),
        (["--output", __file__], "output: expected a folder, got a file"),
    ],
)
def test_misuse(tmp_path: Path, options: list[str], message: str) -> None:
    folder = write_features(tmp_path / "features")
    config = write_config(tmp_path / "config.json")
    output = tmp_path / "run"
    result = run("train", "--features", folder, "--config", config, "--output", output, *options)
    assert result.exit_code == 2 and message in result.stderr
    assert result.stderr.startswith("ocvtp train: ")
    assert not output.exists()


@pytest.mark.parametrize("goes_on", [False, True])
def test_damaged_features_are_refused(tmp_path: Path, goes_on: bool) -> None:
    folder = write_features(tmp_path / "features")
    config = write_config(tmp_path / "config.json", epochs=1)
    output = tmp_path / "run"
    arguments = ("train", "--features", folder, "--config", config, "--output", output)
    if goes_on:
        assert run(*arguments).exit_code == 0
    shard = folder / "features-00002.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    result = run(*arguments)
    assert result.exit_code == 2 and f"ocvtp train: {shard}: expected SHA-256" in result.stderr
    shard.unlink()
    result = run(*arguments)
    assert result.exit_code == 2 and f"ocvtp train: {shard}: " in result.stderr
    assert output.exists() == goes_on


def test_other_features_under_the_same_names_are_refused(tmp_path: Path) -> None:
    folder = write_features(tmp_path / "features")
    config = write_config(tmp_path / "config.json", epochs=1)
    arguments = ("train", "--features", folder, "--config", config, "--output", tmp_path / "run")
    assert run(*arguments).exit_code == 0
    write_features(folder, seed=7)
    result = run(*arguments)
    assert result.exit_code == 2 and "other features, which differ in contents" in result.stderr
    assert run(*arguments, "--fresh").exit_code == 0


@pytest.mark.parametrize("name", ["config.json", "config.toml", "run/run.json"])
def test_files_that_are_cut_off_are_named(tmp_path: Path, name: str) -> None:
    folder = write_features(tmp_path / "features")
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"train": {"lr"')
    config = path if path.suffix == ".toml" else write_config(tmp_path / "c.json")
    config = path if name == "config.json" else config
    output = tmp_path / "run"
    result = run("train", "--features", folder, "--config", config, "--output", output)
    assert result.exit_code == 2 and f"ocvtp train: {path}: expected" in result.stderr


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    folder = write_features(tmp_path / "features")
    config = write_config(tmp_path / "config.json", lr=1e30, epochs=9)
    result = run("train", "--features", folder, "--config", config, "--output", tmp_path / "run")
    assert result.exit_code == 1 and "expected a finite loss" in result.stderr


@pytest.mark.parametrize("package", ["accelerate", "matplotlib"])
def test_without_a_package_it_says_which(tmp_path: Path, package: str) -> None:
    folder = write_features(tmp_path / "features")
    with mock.patch.dict(sys.modules, {package: None}):
        result = run("train", "--features", folder, "--output", tmp_path / "run")
    assert result.exit_code == 2 and f"{package} " in result.stderr
    assert "'.[train]'` in " in result.stderr


def make_photos(output: Path, count: int) -> None:
    """By the script that makes the demo's."""
    spec = importlib.util.spec_from_file_location(
        "make_demo_photos", ROOT / "scripts" / "make_demo_photos.py"
    )
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(output, count, seed=0)


@pytest.mark.slow
def test_a_minute_on_real_photos(tmp_path: Path) -> None:
    make_photos(tmp_path, 48)
    for name in ("training", "held-out"):
        result = run("features", tmp_path / name, "--output", tmp_path / f"{name}-features")
        assert result.exit_code == 0, result.output
    path = ROOT / "scripts" / "demo_pruner.json"
    options = ("--epochs", 10, "--batch-size", 4, "--lr", 2e-3)
    output, folder = tmp_path / "run", tmp_path / "training-features"
    result = run("train", "--features", folder, "--config", path, "--output", output, *options)
    assert result.exit_code == 0, result.output

    settings, keys = read_config(path)
    settings |= {"epochs": 10, "batch_size": 4, "lr": 2e-3}
    tokens = FeatureFolder(folder)
    untrained = Trainer(
        tokens,
        RunFolder(tmp_path / "untrained"),
        TrainConfig.from_dict(settings),
        pruner_config(keys, tokens.num_tokens, tokens.width),
    )
    best = json.loads(next(output.glob("checkpoints/*/state.json")).read_text())["best"]
    assert best < untrained._validate() / 2

    held_out = FeatureFolder(tmp_path / "held-out-features")
    photos = torch.stack([held_out[index] for index in range(len(held_out))]).float()
    chance = torch.stack([random_coverage(photo, 64).mean() for photo in photos])
    pruner = OCPruner.from_checkpoint(output / "pruner.safetensors")
    assert coverage(photos, pruner(photos, photos, budget=64).ids).mean() > chance.mean()
