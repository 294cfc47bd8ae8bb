"""Writes the task's data: a row a question, with its picture, its answer and its kind."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.retention.scenes import make_scenes
from ocvtp_kernels.files import atomic_write

# Where scenes.yaml has it, from the folder of the checkout.
DATA = Path("build/retention/scenes.parquet")


def write_task(path: Path, count: int, seed: int) -> int:
    """Writes the questions of ``count`` scenes of a seed as Parquet; returns how many they are."""
    from datasets import Dataset, Features, Image, Value
    from PIL import Image as Pictures

    rows = [
        {
            "image": Pictures.fromarray(scene.pixels),
            "question": question.text,
            "answer": question.answer,
            "kind": question.kind,
        }
        for scene in make_scenes(count, seed)
        for question in scene.questions
    ]
    texts = {name: Value("string") for name in ("question", "answer", "kind")}
    dataset = Dataset.from_list(rows, features=Features({"image": Image(), **texts}))
    atomic_write(path, lambda aside: dataset.to_parquet(str(aside)))
    return len(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the file and says so."""
    name = "python -m bench.retention.lmms_eval.write"
    parser = argparse.ArgumentParser(prog=name, description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="scenes; 8 questions each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=DATA)
    given = parser.parse_args(arguments)
    number = write_task(given.output, given.count, given.seed)
    print(f"{given.output}: {number} questions about {given.count} scenes of seed {given.seed}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
