"""What is left of features when the process that writes them is killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ocvtp_kernels.training.features import FeatureFolder
from tests.training.feature_cases import contents, make_images, write


@pytest.fixture
def images(tmp_path: Path) -> Path:
    make_images(tmp_path / "images", 7)
    return tmp_path / "images"


def encode_slowly(images: Path, output: Path, started: Any) -> None:
    """Run in a process of its own, to be killed."""
    torch.set_num_threads(1)

    def wait(name: str, reason: str | None) -> None:
        started.set()
        time.sleep(0.02)

    write(images, output, shard_size=2, batch_size=1, report=wait)


@pytest.mark.slow
def test_killed_at_random_moments_it_loses_only_the_running_shard(tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    names = make_images(images, 200)
    (images / "033.png").write_text("not an image")
    write(images, tmp_path / "whole", shard_size=2, batch_size=1)
    # Each process is forked off one that has imported everything, so a kill takes no seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    draw, kills, before = random.Random(0), 0, 0
    for _ in range(10):
        started = context.Event()
        process = context.Process(target=encode_slowly, args=(images, out, started))
        process.start()
        assert started.wait(60)
        time.sleep(draw.uniform(0, 0.15))
        process.kill()
        process.join()
        kills += process.exitcode == -9
        if not (out / "manifest.json").exists():
            continue
        folder = FeatureFolder(out)
        folder.verify()
        assert folder.paths == [name for name in names if name != "033.png"][: len(folder)]
        assert len(folder) >= before
        before = len(folder)
        named = {"manifest.json", *(shard["file"] for shard in folder.manifest["shards"])}
        rest = {name for name in contents(out) if not name.startswith(".")} - named
        assert len(rest) <= 1
    assert kills == 10 and before > 0
    write(images, out, shard_size=2, batch_size=1)
    assert contents(out) == contents(tmp_path / "whole")


def die_at_rename(images: Path, output: Path, when: int, after: bool) -> None:
    """Ends itself, as kill -9 does, before or after one of the renames."""
    torch.set_num_threads(1)
    replace, calls = Path.replace, 0

    def rename(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == when and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        there = replace(self, target)
        if calls == when:
            os.kill(os.getpid(), signal.SIGKILL)
        return there

    Path.replace = rename  # type: ignore[method-assign,assignment]
    write(images, output)


@pytest.mark.parametrize(
    ("when", "after", "whole_shards"),
    [(1, False, 0), (1, True, 0), (2, False, 0), (2, True, 1), (3, True, 1), (4, False, 1)],
)
def test_killed_between_a_shard_and_its_line_in_the_manifest(
    images: Path, tmp_path: Path, when: int, after: bool, whole_shards: int
) -> None:
    out = tmp_path / "out"
    write(images, tmp_path / "whole")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=die_at_rename, args=(images, out, when, after))
    process.start()
    process.join()
    assert process.exitcode == -9
    if whole_shards:
        folder = FeatureFolder(out)
        folder.verify()
        assert len(folder) == 3 * whole_shards
    else:
        assert not (out / "manifest.json").exists()
    write(images, out)
    assert contents(out) == contents(tmp_path / "whole")
