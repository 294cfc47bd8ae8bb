from __future__ import annotations

import multiprocessing
import random
import shutil
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ocvtp_kernels.cli import app
from ocvtp_kernels.training.checkpoints import NAME, load_snapshot, snapshots
from tests.training.runs import (
    log_without_seconds,
    losses,
    run_command,
    write_config,
    write_features,
)

KILLS = 10


def run_in_process(features: Path, output: Path, config: Path) -> None:
    """``ocvtp train`` in the process that this is."""
    torch.set_num_threads(1)
    app(
        ["train", "--features", str(features), "--output", str(output), "--config", str(config)],
        standalone_mode=False,
    )


def start(*arguments: Path) -> BaseProcess:
    """A process that trains, forked from one that has imported everything: a start costs little."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "accelerate", "matplotlib.figure"])
    process = context.Process(target=run_in_process, args=arguments)
    process.start()
    return process


def check_nothing_is_half_written(output: Path) -> None:
    """Whatever has a name of its own is whole."""
    for _, path in snapshots(output / "checkpoints"):
        assert sorted(file.name for file in path.iterdir()) == [
            "model.safetensors",
            "optimizer.safetensors",
            "state.json",
        ]
        assert load_snapshot(path.parent) is not None
        load_file(path / "model.safetensors")
        load_file(path / "optimizer.safetensors")
    for path in output.glob("[!.]*.safetensors"):
        load_file(path)


def check_equal(one: Path, other: Path) -> None:
    assert log_without_seconds(one) == log_without_seconds(other)
    for name in ("best.safetensors", "pruner.safetensors", "health.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    ends = [snapshots(path / "checkpoints")[-1] for path in (one, other)]
    assert ends[0][0] == ends[1][0]
    for name in ("model.safetensors", "optimizer.safetensors"):
        states = [load_file(path / name) for _, path in ends]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_if_never_killed(tmp_path: Path) -> None:
    # With dropout, so that its draws too are those of the step and not of the process.
    config = write_config(
        tmp_path / "config.json",
        {"agg_dropout": 0.2, "transformer_dropout": 0.1},
        epochs=100,
        patience=1000,
        checkpoint_every=3,
    )
    folder = write_features(tmp_path / "features")
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    process = start(folder, whole, config)
    process.join()
    assert process.exitcode == 0
    chance = random.Random(0)
    kills, progress = 0, []
    while kills < KILLS:
        before = snapshots(killed / "checkpoints")
        process = start(folder, killed, config)
        # Killed as of the first steps, not while Python still starts.
        while process.exitcode is None and snapshots(killed / "checkpoints") == before:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.2))
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        kills += 1
        check_nothing_is_half_written(killed)
        progress.append(snapshots(killed / "checkpoints")[-1][0])
    assert kills == KILLS, f"the run ended before it was killed {KILLS} times: {progress}"
    assert progress == sorted(set(progress)), "a resumed run must not fall back"
    process = start(folder, killed, config)
    process.join()
    assert process.exitcode == 0
    check_equal(whole, killed)
    assert not [path for path in killed.rglob(".*")]
    assert sum(bool(NAME.fullmatch(p.name)) for p in (killed / "checkpoints").iterdir()) == 2


@pytest.mark.slow
def test_two_processes_are_one_with_the_same_batch(tmp_path: Path) -> None:
    # 5 images a step, so the processes have unlike shares. Some gradients are clipped and some are
    # not: Adam alone would not tell a gradient from half of it.
    config = write_config(tmp_path / "config.json", batch_size=5, grad_clip=6.5)
    folder = write_features(tmp_path / "features", count=30)
    for processes in (1, 2):
        output = tmp_path / f"by-{processes}"
        arguments = ("train", "--features", folder, "--config", config, "--output", output)
        run_command(*arguments, processes=processes)
    one, two = tmp_path / "by-1", tmp_path / "by-2"
    torch.testing.assert_close(losses(two), losses(one), rtol=1e-5, atol=0)
    for mine, other in zip(log_without_seconds(one), log_without_seconds(two), strict=True):
        assert mine[:3] == other[:3] and mine[4] == other[4]
        if mine[5] not in ("", "val_loss"):
            assert float(other[5]) == pytest.approx(float(mine[5]), rel=1e-5)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.json")
    folder = write_features(tmp_path / "features")
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    run_command("train", "--features", folder, "--config", config, "--output", whole)
    shutil.copytree(whole, damaged)
    last = snapshots(damaged / "checkpoints")[-1][1] / "model.safetensors"
    last.write_bytes(last.read_bytes()[:-40])
    run_command("train", "--features", folder, "--config", config, "--output", damaged)
    check_equal(whole, damaged)
