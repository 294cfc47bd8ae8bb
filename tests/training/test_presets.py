"""Presets of the training, and the place mean that is estimated before the first step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from ocvtp_kernels import OCPruner
from ocvtp_kernels.cli import app
from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.training import OCAutoencoder
from ocvtp_kernels.training.config import PRESETS, TrainConfig, preset_keys, pruner_config
from ocvtp_kernels.training.data import estimate_place_mean
from ocvtp_kernels.training.evaluation import Trained
from ocvtp_kernels.training.folder import RunFolder
from ocvtp_kernels.training.loop import Trainer
from ocvtp_kernels.training.run import train
from tests.cases import random_tokens
from tests.training.cases import random_autoencoder, tiny_config
from tests.training.runs import features, run_command, write_config, write_features

KEPT = {"start": "kmeans", "encode_lr": 0.0, "slots_lr": 0.05, "warmup_epochs": 0.5}
SHORT = {"epochs": 2, "batch_size": 4, "slots": (2, 3), "warmup_epochs": 1}
PLACED = tiny_config(enc_place_mean=True)


@pytest.fixture(autouse=True)
def no_accelerator_left() -> Iterator[None]:
    """Accelerate keeps one state a process, and refuses another precision."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def run(tmp_path: Path, *options: object, config: Path | None = None) -> dict[str, Any]:
    """The ``run.json`` of a run of one epoch."""
    folder = write_features(tmp_path / "features")
    config = config or write_config(tmp_path / "config.json", epochs=1)
    output = tmp_path / "run"
    arguments = ["train", "--features", folder, "--config", config, "--output", output, *options]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads((output / "run.json").read_text())
    return found


def test_published_is_the_default_and_sets_nothing() -> None:
    assert TrainConfig.preset("published", 576) == TrainConfig()
    assert preset_keys("published", 576) == ({}, {})
    assert PRESETS[0] == "published"


@pytest.mark.parametrize(
    ("num_tokens", "slots"),
    [
        (3, (3,)),
        (5, (4,)),
        (23, (4,)),
        (24, (4, 8)),
        (100, (4, 8, 16, 32)),
        (576, (4, 8, 16, 32, 64, 128)),
        (2880, (4, 8, 16, 32, 64, 128)),
    ],
)
def test_the_kept_start_has_slots_that_fit_the_tokens(
    num_tokens: int, slots: tuple[int, ...]
) -> None:
    config = TrainConfig.preset("kept-start", num_tokens)
    assert config == TrainConfig(**KEPT, slots=slots)  # type: ignore[arg-type]
    changed = TrainConfig.preset("kept-start", num_tokens, slots=(7,), encode_lr=0.5)
    assert changed == TrainConfig(**{**KEPT, "slots": (7,), "encode_lr": 0.5})  # type: ignore[arg-type]
    assert pruner_config(preset_keys("kept-start", 5)[1], 5, 8).enc_place_mean


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^preset: expected one of"):
        preset_keys("kept", 5)


def test_a_preset_s_settings_are_recorded(tmp_path: Path) -> None:
    keys = json.loads(tiny_config().to_json())
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"epochs": 1, "batch_size": 4, "pruner": keys}))
    found = run(tmp_path, "--preset", "kept-start", config=config)
    expected = TrainConfig.preset("kept-start", 5, epochs=1, batch_size=4)
    assert found["train"] == expected.as_json()
    assert found["pruner"]["enc_place_mean"] is True
    pruner = OCPruner.from_checkpoint(tmp_path / "run" / "pruner.safetensors")
    folder = features(tmp_path / "features")
    mean = estimate_place_mean(folder, folder.split()[0])
    assert torch.equal(pruner.place_mean, mean)  # type: ignore[arg-type]
    card = (tmp_path / "run" / "README.md").read_text()
    assert '"enc_place_mean": true' in card and "| encode_lr | 0.0 |" in card


def test_options_go_before_the_config_and_both_before_the_preset(tmp_path: Path) -> None:
    config = write_config(
        tmp_path / "c.json", epochs=1, preset="kept-start", encode_lr=0.5, slots_lr=0.5
    )
    found = run(tmp_path, "--slots-lr", 0.25, config=config)
    assert found["train"]["start"] == "kmeans" and "preset" not in found["train"]
    assert found["train"]["encode_lr"] == 0.5 and found["train"]["slots_lr"] == 0.25
    assert found["train"]["slots"] == [2, 3]
    assert found["pruner"]["enc_place_mean"] is True


def test_the_option_of_a_preset_goes_before_the_config_s(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.json", epochs=1, preset="kept-start")
    found = run(tmp_path, "--preset", "published", config=config)
    assert found["train"]["start"] == "random" and "enc_place_mean" not in found["pruner"]


@pytest.mark.parametrize(
    ("options", "key", "has_one"),
    [
        (["--place-mean"], None, True),
        (["--place-mean"], False, True),
        (["--no-place-mean", "--preset", "kept-start"], None, False),
        (["--preset", "kept-start"], False, False),
        ([], True, True),
        ([], None, False),
    ],
)
def test_a_place_mean_is_asked_for_or_not(
    tmp_path: Path, options: list[str], key: bool | None, has_one: bool
) -> None:
    keys = json.loads(tiny_config().to_json())
    keys |= {} if key is None else {"enc_place_mean": key}
    config = tmp_path / "c.json"
    settings = {"epochs": 1, "batch_size": 4, "slots": [2], "pruner": keys}
    config.write_text(json.dumps(settings))
    found = run(tmp_path, *options, config=config)
    assert found["pruner"].get("enc_place_mean", False) == has_one
    assert ("place_mean" in load_file(tmp_path / "run" / "best.safetensors")) == has_one


def test_a_bad_preset_is_misuse(tmp_path: Path) -> None:
    folder = write_features(tmp_path / "features")
    arguments = ["train", "--features", folder, "--output", tmp_path / "run", "--preset", "none"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2 and "preset: expected one of" in result.stderr
    assert not (tmp_path / "run").exists()


def test_the_estimate_is_the_mean_by_place_less_that_of_all(tmp_path: Path) -> None:
    folder = features(write_features(tmp_path / "features"))
    images = [1, 4, 19, 20]
    tokens = torch.stack([folder[image] for image in images]).double()
    expected = tokens.mean(0) - tokens.mean((0, 1))
    mean = estimate_place_mean(folder, images)
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, expected.float(), rtol=1e-6, atol=1e-7)
    # float16 adds up exactly, in any order.
    assert torch.equal(mean, estimate_place_mean(folder, images[::-1]))


def test_the_autoencoder_takes_it_off_the_slots_input_alone() -> None:
    plain, placed = random_autoencoder(), random_autoencoder(PLACED)
    tokens, mean = random_tokens(2, 5, 8, dtype=torch.float64), random_tokens(1, 5, 8, seed=3)[0]
    assert placed.place_mean is not None
    placed.place_mean.copy_(mean)
    noise = random_tokens(2, 3, 4, seed=1, dtype=torch.float64)
    visible = torch.tensor([[True, False, True, False, False]] * 2)
    got = placed(tokens, noise=noise, visible=visible)
    want = plain(tokens - mean, noise=noise)
    assert torch.equal(got.slots, want.slots) and torch.equal(got.attention, want.attention)
    assert torch.equal(got.reconstruction, plain.decode(tokens, want.slots, visible)[0])


def test_it_is_there_before_the_first_step_and_stays(tmp_path: Path) -> None:
    folder = features(write_features(tmp_path / "features"))
    config = TrainConfig(**SHORT)  # type: ignore[arg-type]
    trainer = Trainer(folder, RunFolder(tmp_path / "run"), config, PLACED)
    mean = estimate_place_mean(folder, trainer.split.train)
    assert mean.abs().sum() > 0
    assert torch.equal(trainer.model.place_mean, mean)  # type: ignore[arg-type]
    trainer.run()
    best = OCAutoencoder.from_checkpoint(tmp_path / "run" / "best.safetensors")
    assert torch.equal(best.place_mean, mean)  # type: ignore[arg-type]
    assert torch.equal(best.pruner().place_mean, mean)  # type: ignore[arg-type]
    # Read off the checkpoint, not estimated again.
    resumed = train(folder, tmp_path / "run", config, PLACED)
    assert resumed.step == trainer.total
    assert torch.equal(resumed.model.place_mean, mean)  # type: ignore[arg-type]


def test_evaluation_takes_it_off_kept_tokens_at_their_places(tmp_path: Path) -> None:
    folder = features(write_features(tmp_path / "features"))
    model = random_autoencoder(PLACED).float()
    tokens, mean = random_tokens(2, 5, 8), random_tokens(1, 5, 8, seed=3)[0]
    model.place_mean.copy_(mean)  # type: ignore[union-attr]
    model.save_checkpoint(tmp_path / "with.safetensors")
    less = random_autoencoder().float()
    less.save_checkpoint(tmp_path / "without.safetensors")
    cpu = torch.device("cpu")
    got, want = (
        Trained.load(tmp_path / f"{n}.safetensors", folder, cpu) for n in ("with", "without")
    )
    ids = got.select(tokens, 2, 0)
    assert torch.equal(ids, want.select(tokens - mean, 2, 0))
    # The decoder sees the kept tokens themselves, so the rest is by hand.
    taken = mock.Mock(wraps=got.autoencoder.encode_project.forward)
    with mock.patch.object(got.autoencoder.encode_project, "forward", taken):
        got.decode(tokens, ids, 0)
    assert torch.equal(taken.call_args.args[0], gather_tokens(tokens - mean, ids))


@pytest.mark.slow
def test_two_processes_share_it(tmp_path: Path) -> None:
    folder = write_features(tmp_path / "features", count=30)
    config = write_config(tmp_path / "config.json", epochs=1, batch_size=5)
    states = []
    for processes in (1, 2):
        output = tmp_path / f"by-{processes}"
        arguments = ("train", "--features", folder, "--config", config, "--output", output)
        run_command(*arguments, "--preset", "kept-start", processes=processes)
        states.append(load_file(output / "best.safetensors"))
    assert torch.equal(states[0]["place_mean"], states[1]["place_mean"])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-5)
