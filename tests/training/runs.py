"""Folders of features and short runs over them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ocvtp_kernels.training.features import MANIFEST, FeatureFolder, sha256_of, shard_name
from tests.training.cases import tiny_config

ROOT = Path(__file__).parents[2]


def write_features(
    path: Path, count: int = 24, grid: tuple[int, int] = (1, 5), width: int = 8, seed: int = 0
) -> Path:
    """Images of a few regions each: a token is its region's vector and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    num_tokens = grid[0] * grid[1]
    kinds = torch.randn(6, width, generator=generator)
    regions = torch.randint(6, (count, num_tokens), generator=generator)
    noise = 0.1 * torch.randn(count, num_tokens, width, generator=generator)
    shards = []
    path.mkdir(parents=True, exist_ok=True)
    for number, tokens in enumerate((kinds[regions] + noise).half().split(10)):
        file = path / shard_name(number)
        save_file({"tokens": tokens.contiguous()}, file)
        images = [f"photo-{10 * number + row:03d}.jpg" for row in range(len(tokens))]
        shards.append(
            {
                "file": file.name,
                "count": len(tokens),
                "sha256": sha256_of(file),
                "computed_in": "float32",
                "images": images,
                "bytes": [1] * len(tokens),
            }
        )
    manifest = {
        "format": "ocvtp-features",
        "version": 1,
        "package_version": "0",
        "encoder": "made up",
        "model": None,
        "reference_layer": None,
        "weights_sha256": None,
        "num_tokens": num_tokens,
        "width": width,
        "dtype": "float16",
        "grid": list(grid),
        "shards": shards,
        "skipped": [],
    }
    (path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return path


def write_config(path: Path, pruner: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A config of a few steps of `tiny_config`, without dropout."""
    keys = json.loads(tiny_config(**(pruner or {})).to_json())
    values = {"epochs": 3, "batch_size": 4, "slots": [2, 3], "warmup_epochs": 1, **settings}
    path.write_text(json.dumps({**values, "pruner": keys}), encoding="utf-8")
    return path


def command(*arguments: object, processes: int = 1) -> list[str]:
    """``ocvtp`` as a command line, or the same in several processes."""
    module = ["-m", "ocvtp_kernels.cli"]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        module = [*launcher, str(processes), *module]
    return [sys.executable, *module, *map(str, arguments)]


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def run_command(*arguments: object, processes: int = 1) -> None:
    done = subprocess.run(
        command(*arguments, processes=processes),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def log_without_seconds(path: Path) -> list[list[str]]:
    """Every row of ``log.csv`` as text, but for the time, which no two runs share."""
    with (path / "log.csv").open(encoding="utf-8", newline="") as file:
        return [row[:-1] for row in csv.reader(file)]


def losses(path: Path) -> Tensor:
    """Training losses, a row a step."""
    return torch.tensor([float(row[3]) for row in log_without_seconds(path)[1:]])


def features(path: Path) -> FeatureFolder:
    return FeatureFolder(path)
