"""The folder of a training run: what is in it, whose it is, and what a run leaves at its end."""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ocvtp_kernels.config import PrunerConfig
from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.markdown import markdown_table
from ocvtp_kernels.training.autoencoder import OCAutoencoder
from ocvtp_kernels.training.config import FREE_KEYS
from ocvtp_kernels.training.log import Row, draw_curve, read_log
from ocvtp_kernels.version import __version__

if TYPE_CHECKING:
    from ocvtp_kernels.training.loop import Trainer

PACKAGES = ("accelerate", "safetensors")


class RunFolder:
    """Paths of a run's files.

    Attributes:
        run: ``run.json``, the settings; log: ``log.csv``; checkpoints: the folder of snapshots;
        best: ``best.safetensors``, the whole autoencoder at its best validation loss; at the end
        too pruner: ``pruner.safetensors``, which `OCPruner.from_checkpoint` reads; curve:
        ``loss.png``; card: ``README.md``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run, self.log = path / "run.json", path / "log.csv"
        self.checkpoints = path / "checkpoints"
        self.best, self.pruner = path / "best.safetensors", path / "pruner.safetensors"
        self.curve, self.card = path / "loss.png", path / "README.md"

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them but the checkpoints."""
        return self.log, self.best, self.pruner, self.curve, self.card, self.run

    @staticmethod
    def plain(config: PrunerConfig) -> dict[str, Any]:
        """A pruner's config as JSON has it."""
        plain: dict[str, Any] = json.loads(config.to_json())
        return plain

    def prepare(self, identity: Mapping[str, Any], is_fresh: bool) -> None:
        """Makes the folder ready for a run of this identity, to begin or to go on with.

        Raises:
            ValueError: it has a run of another identity, or is not empty and not of a run.
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
            _require_same(json.loads(self.run.read_text(encoding="utf-8")), identity, self.path)
        # Killed while it wrote aside, a run leaves what it wrote.
        for path in self.files:
            for aside in self.path.glob(f".{path.stem}-????????{path.suffix}"):
                aside.unlink()
        text = json.dumps(identity, indent=2) + "\n"
        atomic_write(self.run, text)

    def finish(self, trainer: Trainer, command: str) -> None:
        """Writes the best weights' pruner, the curve and the card."""
        # Its weights are drawn before they are read; that must not move torch's own generator.
        with torch.random.fork_rng(devices=[]):
            best = OCAutoencoder.from_checkpoint(self.best)
        best.pruner().save_checkpoint(self.pruner)
        rows = read_log(self.log)
        draw_curve(rows, self.curve)
        text = card(trainer, rows, command)
        atomic_write(self.card, text)


def _require_same(there: Mapping[str, Any], identity: Mapping[str, Any], path: Path) -> None:
    differences = []
    for part in ("train", "pruner"):
        old, new = there.get(part, {}), identity[part]
        differences += [
            f"{key} {old.get(key)!r} there, {new.get(key)!r} now"
            for key in sorted({*old, *new} - set(FREE_KEYS))
            if old.get(key) != new.get(key)
        ]
    if there.get("data") != identity["data"]:
        differences.append("other features")
    if differences:
        raise ValueError(
            f"output: {path} has a run that differs ({'; '.join(differences)}); give another"
            " folder, or begin it anew with --fresh"
        )


def card(trainer: Trainer, rows: list[Row], command: str) -> str:
    """The model card, Markdown."""
    manifest, split, features = trainer.features.manifest, trainer.split, trainer.features
    ends = [row for row in rows if row.val_loss is not None]
    data = {
        "encoder": manifest.get("encoder") or manifest.get("model"),
        "reference layer": manifest.get("reference_layer"),
        "tokens of an image": f"{features.num_tokens} of {features.width} channels",
        "images trained on": len(split.train),
        "images validated on": len(split.val),
        "fingerprint": f"`{split.fingerprint(features)[:16]}`",
    }
    losses = {
        "steps": f"{trainer.step} of {split.batch_size} images, {trainer.world} process(es) at the"
        " end",
        "epochs": f"{ends[-1].epoch} of {trainer.config.epochs}",
        "validation loss after the first epoch": f"{ends[0].val_loss:.6g}",
        "validation loss at its best": f"{trainer.best:.6g} (epoch {trainer.best_epoch})",
        "seconds": f"{rows[-1].seconds:.0f}",
    }
    versions = {"ocvtp-kernels": __version__, "Python": platform.python_version()}
    versions["torch"] = torch.__version__  # which tells the build too
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    settings = {key: value for key, value in dataclasses.asdict(trainer.config).items()}
    parts = [
        "# An object-centric token pruner",
        "Trained by `ocvtp train` (OC-VTP, arXiv 2511.20439). `pruner.safetensors` is the pruner"
        " with its config, for `OCPruner.from_checkpoint` and `ocvtp prune --checkpoint`;"
        " `best.safetensors` is the whole autoencoder. Both are of the epoch with the best"
        " validation loss: the training objective on images not trained on.",
        f"```sh\n{command or 'ocvtp train'}\n```",
        "## Data",
        _table(data),
        "## Losses",
        "![loss](loss.png)",
        _table(losses),
        "## Settings",
        _table(settings),
        "## Versions",
        _table(versions),
        "## The pruner's config",
        f"```json\n{trainer.pruner.to_json()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _table(values: Mapping[str, Any]) -> str:
    return markdown_table(("", ""), [(key, str(value)) for key, value in values.items()])
