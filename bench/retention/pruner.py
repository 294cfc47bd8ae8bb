"""Trains the tiny LLaVA's object-centric pruner: ``python -m bench.retention.pruner``.

By the commands that users have: `ocvtp features` of scenes that the model was trained on, then
`ocvtp train` with ``pruner.json``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from bench.retention.model import FOLDER, PRUNER
from bench.retention.scenes import make_scenes
from bench.retention.train import SEEDS
from ocvtp_kernels.files import atomic_write

SCENES = 1500


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains it, and leaves it in the folder of the model."""
    parser = argparse.ArgumentParser(prog="python -m bench.retention.pruner", description=__doc__)
    parser.add_argument("--model", type=Path, default=FOLDER / "tiny-llava", metavar="DIR")
    parser.add_argument("--config", type=Path, default=FOLDER / "pruner.json")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"the model's {PRUNER}")
    given = parser.parse_args(arguments)
    with TemporaryDirectory() as name:
        folder = Path(name)
        pictures = folder / "pictures"
        pictures.mkdir()
        for number, scene in enumerate(make_scenes(SCENES, SEEDS[0])):
            Image.fromarray(scene.pixels).save(pictures / f"{number:04}.png")
        features, run = str(folder / "features"), str(folder / "run")
        ocvtp("features", str(pictures), "--model", str(given.model), "--output", features)
        ocvtp("train", "--features", features, "--config", str(given.config), "--output", run)
        output = given.output or given.model / PRUNER
        output.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(output, lambda path: shutil.copyfile(Path(run) / "pruner.safetensors", path))
    print(output)
    return 0


def ocvtp(*arguments: str) -> None:
    """Runs a command of the package, on one thread, which repeats its weights bitwise."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "ocvtp_kernels.cli", *arguments], env=environment, check=True
    )


if __name__ == "__main__":
    raise SystemExit(main())
