"""Makes an environment with lmms-eval, for `make test-lmms-eval`: scripts/lmms_eval_env.py VENV.

Of what lmms-eval asks for, what its models of images need and its metrics of tests.
"""

from __future__ import annotations

import sys
from pathlib import Path

from environment import Environment

LMMS_EVAL = ("lmms-eval==0.7.3", "qwen-vl-utils==0.0.14")
NEEDED = (
    *("accelerate", "datasets", "decord", "evaluate", "jsonlines", "loguru", "numexpr", "openai"),
    *("pillow", "python-dotenv", "pytablewriter", "pytest", "pytest-xdist", "requests"),
    *("sacrebleu", "safetensors", "scikit-learn", "tenacity", "tqdm-multiprocess", "typer"),
    "zstandard",
    "filelock<4",  # lmms-eval 0.7.3 imports a module of it that 4 has no more
    "transformers==5.24.0",
)


def make(folder: Path) -> None:
    """Makes the environment in ``folder``, anew."""
    environment = Environment(folder)
    environment.install_torchvision()
    environment.install(*NEEDED)
    environment.install("--no-deps", *LMMS_EVAL)
    environment.install_this()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
