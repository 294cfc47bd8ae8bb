"""Several processes of a run: what is wrong for the main one ends all of them."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ocvtp_kernels.training.config import TrainConfig
from ocvtp_kernels.training.run import train
from tests.training.cases import tiny_config
from tests.training.runs import features, write_features

SETTINGS = TrainConfig(epochs=1, batch_size=4, slots=(2,), warmup_epochs=0)
PROCESSES = 2


def train_as(rank: int, port: int, folder: Path, errors: Any) -> None:
    """A run in the process that this is, one of `PROCESSES`, as ``torchrun`` starts them."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "MASTER_PORT": port}
    os.environ |= {name: str(number) for name, number in numbers.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    try:
        train(features(folder / "features"), folder / "run", SETTINGS, tiny_config())
        errors.put((rank, ""))
    except (OSError, ValueError) as error:
        errors.put((rank, str(error)))
    torch.distributed.destroy_process_group()


def run_in_processes(folder: Path) -> dict[int, str]:
    """The error of each process, which all end; empty where there is none."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "accelerate"])
    errors = context.Queue()
    processes = [
        context.Process(target=train_as, args=(rank, port, folder, errors))
        for rank in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    try:
        return dict(errors.get(timeout=60) for _ in processes)
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()


def damage_shard(folder: Path) -> None:
    with (folder / "features" / "features-00001.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")


def cut_settings(folder: Path) -> None:
    path = folder / "run" / "run.json"
    path.write_bytes(path.read_bytes()[:-9])


def cut_log(folder: Path) -> None:
    os.truncate(folder / "run" / "log.csv", 60)


def cut_best(folder: Path) -> None:
    path = folder / "run" / "best.safetensors"
    os.truncate(path, path.stat().st_size - 1)


def test_a_damaged_shard_ends_all_processes(tmp_path: Path) -> None:
    write_features(tmp_path / "features")
    damage_shard(tmp_path)
    errors = run_in_processes(tmp_path)
    assert sorted(errors) == [0, 1]
    assert all("features-00001.safetensors: expected SHA-256" in text for text in errors.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_shard, "features-00001.safetensors: expected SHA-256"),
        (cut_settings, "run.json: expected a JSON object"),
        (cut_log, "log.csv: expected at least"),
        (cut_best, "best.safetensors: expected a safetensors file"),
        (lambda folder: write_features(folder / "features", seed=7), "other features"),
    ],
)
def test_damage_ends_all_processes_that_go_on(
    tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    write_features(tmp_path / "features")
    assert run_in_processes(tmp_path) == {0: "", 1: ""}
    damage(tmp_path)
    errors = run_in_processes(tmp_path)
    assert sorted(errors) == [0, 1] and all(words in text for text in errors.values()), errors
