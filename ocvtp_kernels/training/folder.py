"""The folder of a training run: its files, and whether a run may go on in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.pruner.config import read_json_object
from ocvtp_kernels.training.config import FREE_KEYS


class RunFolder:
    """Paths of a run's files.

    Attributes:
        run: ``run.json``, the settings; log: ``log.csv``; health: ``health.csv``, a row an epoch
        and K; checkpoints: the folder of snapshots;
        best: ``best.safetensors``, the whole autoencoder at its best validation loss; at the end
        too pruner: ``pruner.safetensors``, which `OCPruner.from_checkpoint` reads; curve:
        ``loss.png``; card: ``README.md``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run, self.log = path / "run.json", path / "log.csv"
        self.health = path / "health.csv"
        self.checkpoints = path / "checkpoints"
        self.best, self.pruner = path / "best.safetensors", path / "pruner.safetensors"
        self.curve, self.card = path / "loss.png", path / "README.md"

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them but the checkpoints."""
        return self.log, self.health, self.best, self.pruner, self.curve, self.card, self.run

    def prepare(self, identity: Mapping[str, Any], is_fresh: bool) -> None:
        """Makes the folder ready for a run of this identity, to begin or to go on with.

        Raises:
            ValueError: it has a run of another identity, or one whose ``run.json`` is damaged, or
                is not empty and not of a run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"output: expected a folder, got a file: {self.path}")
        if self.path.is_dir() and not self.run.exists():
            strange = [p.name for p in self.path.iterdir() if not p.name.startswith(".run-")]
            if strange:
                raise ValueError(
                    f"output: expected an empty folder or one of a run, found {sorted(strange)[:3]}"
                    f" in {self.path}"
                )
        if is_fresh:
            # run.json last: a folder without it would not be known for a run's.
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            for path in self.files:
                path.unlink(missing_ok=True)
        elif self.run.exists():
            _require_same(read_run(self.run), identity, self.path)
        # A run that was killed may have left temporary files.
        for path in self.files:
            for temporary in self.path.glob(f".{path.stem}-????????{path.suffix}"):
                temporary.unlink()
        atomic_write(self.run, json.dumps(identity, indent=2) + "\n")


def read_run(path: Path) -> dict[str, Any]:
    """A run's identity, its settings under ``train`` and ``pruner``, of its ``run.json``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not that.
    """
    run = read_json_object(path)
    for part in ("train", "pruner"):
        if not isinstance(run.get(part), dict):
            raise ValueError(f"{path}: {part}: expected keys and values, got {run.get(part)!r}")
    return run


def _require_same(there: Mapping[str, Any], identity: Mapping[str, Any], path: Path) -> None:
    differences = []
    for part in ("train", "pruner"):
        old, new = there[part], identity[part]
        differences += [
            f"{key} {old.get(key)!r} there, {new.get(key)!r} now"
            for key in sorted({*old, *new} - set(FREE_KEYS))
            if old.get(key) != new.get(key)
        ]
    old, new = there.get("data"), identity["data"]
    if not isinstance(old, dict):
        differences.append("features of whose contents it has no record, as of an earlier version")
    elif old != new:
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        differences.append(f"other features, which differ in {', '.join(keys)}")
    if differences:
        raise ValueError(
            f"output: {path} has a run that differs ({'; '.join(differences)}); give another"
            " folder, or begin it anew with --fresh"
        )
