"""The model cards of the tiny LLaVA: what is in a folder, and what it answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bench.retention.asking import ask, encode_questions
from bench.retention.methods import all_features, to_pixel_values
from bench.retention.model import TOKENS, load
from bench.retention.scenes import KINDS, Scene, make_scenes
from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.installing import installed_version
from ocvtp_kernels.markdown import markdown_table

WEIGHTS = "model.safetensors"
HELD_OUT_SEED, HELD_OUT_SCENES = 7, 125

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# {name}

A toy: a LLaVA of {parameters:,} parameters that answers questions about drawn scenes in one word,
made to tell whether a pruned model still answers. It knows {words} words and no photo. See
docs/retention.md of ocvtp-kernels.

It was trained from scratch by `python -m bench.retention.train --seed {seed}`, on one thread and
scenes of the seeds {first_seed} to {last_seed}: {stages}.
Weights are in half precision; load them as float32.

Right answers to {questions} questions about scenes of seed {held_out}, unseen in training:

{accuracies}

| | |
|---|---|
| SHA-256 of `{weights}` | `{digest}` |
| trained with | {versions} |
"""


@torch.no_grad()
def right_answers(folder: Path, scenes: Sequence[Scene]) -> Tensor:
    """Which questions a model answers rightly, from all tokens: bool ``[B, QUESTIONS]``."""
    model, processor = load(folder)
    features = all_features(model, to_pixel_values(processor, scenes))
    asked = encode_questions(scenes)
    positions = torch.arange(TOKENS).expand(len(scenes), -1)
    return ask(model, features, asked, positions, TOKENS)[:, :, 0].argmax(-1) == asked.answers


def write_card(folder: Path, stages: Sequence[str], seed: int, seeds: range) -> None:
    """Writes ``README.md`` into a model's folder.

    Args:
        folder: of the model.
        stages: that it went through, in words.
        seed: of the training.
        seeds: of its scenes.
    """
    scenes = make_scenes(HELD_OUT_SCENES, HELD_OUT_SEED)
    right = right_answers(folder, scenes)
    kinds = [[question.kind for question in scene.questions] for scene in scenes]
    shares = {
        kind: right[torch.tensor([[each == kind for each in row] for row in kinds])]
        for kind in KINDS
    } | {"all": right}
    percent = [f"{100 * share.double().mean():.1f} %" for share in shares.values()]
    model, _ = load(folder)
    text = CARD.format(
        name=folder.name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        words=model.config.text_config.vocab_size,
        seed=seed,
        first_seed=seeds.start,
        last_seed=seeds.stop - 1,
        stages=", then ".join(stages),
        questions=right.numel(),
        held_out=HELD_OUT_SEED,
        accuracies=markdown_table(list(shares), [percent]),
        weights=WEIGHTS,
        digest=hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest(),
        versions=", ".join(
            f"{name} {installed_version(name)}" for name in ("torch", "transformers", "numpy")
        ),
    )
    atomic_write(folder / "README.md", text)
