"""A training run from start to end: the trainer, then the pruner, the curve and the model card."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.installing import installed_version
from ocvtp_kernels.markdown import markdown_table
from ocvtp_kernels.pruner.config import PrunerConfig
from ocvtp_kernels.training.autoencoder import OCAutoencoder
from ocvtp_kernels.training.config import TrainConfig
from ocvtp_kernels.training.features import FeatureFolder
from ocvtp_kernels.training.folder import RunFolder
from ocvtp_kernels.training.health import Health, read_health
from ocvtp_kernels.training.log import Row, draw_curve, read_log
from ocvtp_kernels.training.loop import Trainer
from ocvtp_kernels.version import __version__

PACKAGES = ("accelerate", "safetensors")
HEALTH = ("K", "loss", "slots zeroed", "distinct picks", "empty slots", "spread")


def train(
    features: FeatureFolder,
    output: Path,
    config: TrainConfig,
    pruner: PrunerConfig,
    *,
    is_fresh: bool = False,
    command: str = "",
) -> Trainer:
    """Trains a pruner, or resumes its run; `RunFolder` lists the files that it leaves.

    Args:
        command: what the model card says was run.
        features, output, config, pruner, is_fresh: as `Trainer` has them.
    """
    folder = RunFolder(output)
    trainer = Trainer(features, folder, config, pruner, is_fresh=is_fresh)
    trainer.run()
    trainer.on_main_process(lambda: _finish(trainer, command))
    return trainer


def _finish(trainer: Trainer, command: str) -> None:
    """Writes the best weights' pruner, the curve and the model card."""
    folder = trainer.folder
    # The model draws weights before it reads them; torch's own generator must not advance.
    with torch.random.fork_rng(devices=[]):
        best = OCAutoencoder.from_checkpoint(folder.best)
    best.pruner().save_checkpoint(folder.pruner)
    rows = read_log(folder.log)
    draw_curve(rows, folder.curve)
    health = [row for row in read_health(folder.health) if row.epoch == trainer.best_epoch]
    atomic_write(folder.card, _card(trainer, rows, health, command))


def _card(trainer: Trainer, rows: list[Row], health: list[Health], command: str) -> str:
    """The model card, Markdown."""
    features, split = trainer.features, trainer.split
    manifest = features.manifest
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
    versions["torch"] = torch.__version__  # includes the build
    versions |= {name: installed_version(name) or "unknown" for name in PACKAGES}
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
        "## Slots",
        f"On the images validated on, at epoch {trainer.best_epoch}: the loss, and that of a"
        " decoder whose slots are zeroed; tokens that slots pick, each counted once, and slots"
        " that no token belongs to, both over K; and how much of the variance of the tokens'"
        " places lies within slots. `health.csv` has every epoch.",
        markdown_table(HEALTH, [row.cells() for row in health]),
        "## Settings",
        _table(dataclasses.asdict(trainer.config)),
        "## Versions",
        _table(versions),
        "## The pruner's config",
        f"```json\n{trainer.pruner.to_json()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _table(values: Mapping[str, Any]) -> str:
    return markdown_table(("", ""), [(key, str(value)) for key, value in values.items()])
