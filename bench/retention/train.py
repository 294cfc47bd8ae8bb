"""Trains the tiny LLaVA from scratch: ``python -m bench.retention.train``, 40 minutes of a core.

By steps and on one thread, so that a machine repeats its weights bitwise. Three stages: the vision
tower alone learns shape and colour of every patch, and from its CLS token which objects there are,
for LLaVA itself would never train that token's attention; then all of it learns to answer; then it
answers from tokens drawn at random. Released models went through no such third stage: the model
before it is kept too.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.retention.asking import Asked, ask, encode_questions
from bench.retention.card import write_card
from bench.retention.model import FOLDER, MEAN, STD, TOKENS, WIDTH, make_model, make_processor
from bench.retention.scenes import COLOURS, KINDS, SHAPES, Scene, make_scenes

SEEDS = range(1001, 1029)
SCENES_OF_SEED = 1000
BATCH = 16  # scenes
BACKGROUND_WEIGHT = 0.15
BUDGETS = (5, 8, 11, 16, 22, 33, 50)  # of the third stage


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        name: of its lines in the log.
        steps: of a batch each.
        lr: the largest learning rate.
        answers: whether the text model is trained too, to answer.
        drop: share of the steps in which the text model sees some of the image tokens alone.
        saved_as: folder of the model behind it, or "".
    """

    name: str
    steps: int
    lr: float
    answers: bool = True
    drop: float = 0.0
    saved_as: str = ""


STAGES = (
    Stage("tower", 2600, 1.2e-3, answers=False),
    Stage("answers", 3000, 1e-3, saved_as="tiny-llava-undropped"),
    Stage("dropped", 500, 6e-4, drop=0.85, saved_as="tiny-llava"),
)


class Data(NamedTuple):
    """Training scenes as tensors."""

    pixels: Tensor  # uint8 [n, SIDE, SIDE, 3]
    shapes: Tensor  # uint8 [n, TOKENS]
    colours: Tensor  # uint8 [n, TOKENS]
    asked: Asked
    kinds: Tensor  # int64 [n, QUESTIONS], places in KINDS


class Heads(nn.Module):
    """What the vision tower is trained through, which no model keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.shape = nn.Linear(WIDTH, 1 + len(SHAPES))
        self.colour = nn.Linear(WIDTH, 1 + len(COLOURS))
        self.present = nn.Linear(WIDTH, len(SHAPES) * len(COLOURS))

    def loss(self, tokens: Tensor, summary: Tensor, shapes: Tensor, colours: Tensor) -> Tensor:
        """Of shape and colour by the tokens ``[B, N, D]``, and of all objects by the CLS token."""
        loss = torch.zeros(())
        for head, labels in ((self.shape, shapes), (self.colour, colours)):
            weight = torch.ones(head.out_features)
            weight[0] = BACKGROUND_WEIGHT
            loss = loss + F.cross_entropy(head(tokens).flatten(0, 1), labels.flatten(), weight)
        object_ids = (shapes - 1) * len(COLOURS) + colours - 1
        present = torch.zeros(len(shapes), 1 + self.present.out_features)
        # The first column is for patches of the background.
        present.scatter_(1, torch.where(shapes > 0, 1 + object_ids, 0), 1.0)
        rare = torch.tensor(4.0)  # few of the objects are there
        return loss + 2 * F.binary_cross_entropy_with_logits(
            self.present(summary), present[:, 1:], pos_weight=rare
        )


def training_scenes() -> Data:
    """Scenes of all seeds, drawn by several processes."""
    with ProcessPoolExecutor() as pool:
        drawn = pool.map(make_scenes, [SCENES_OF_SEED] * len(SEEDS), SEEDS)
        return to_data([scene for scenes in drawn for scene in scenes])


def to_data(scenes: Sequence[Scene]) -> Data:
    """Scenes as tensors."""
    return Data(
        torch.from_numpy(np.stack([scene.pixels for scene in scenes])),
        torch.from_numpy(np.stack([scene.shapes for scene in scenes])),
        torch.from_numpy(np.stack([scene.colours for scene in scenes])),
        encode_questions(scenes),
        torch.tensor([[KINDS.index(q.kind) for q in scene.questions] for scene in scenes]),
    )


def to_pixel_values(pixels: Tensor) -> Tensor:
    """Pictures as the processor gives them to the model: ``[B, 3, SIDE, SIDE]``."""
    return (pixels.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


class Progress:
    """The mean loss and the share of right answers by kind, printed now and then."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.start = stage, time.perf_counter()
        self.losses: list[float] = []
        self.right, self.asked = Counter[int](), Counter[int]()

    def answered(self, is_right: Tensor, kinds: Tensor) -> None:
        """Counts the answers of a step."""
        self.asked.update(kinds.flatten().tolist())
        self.right.update(kinds[is_right].tolist())

    def after(self, step: int, loss: float) -> None:
        """Notes a step's loss; prints the means of the last ones after every hundred."""
        self.losses.append(loss)
        if step % 100 and step != self.stage.steps:
            return
        shares = [
            f"{kind} {self.right[place] / self.asked[place]:.2f}"
            for place, kind in enumerate(KINDS)
            if self.asked[place]
        ]
        mean, seconds = sum(self.losses) / len(self.losses), time.perf_counter() - self.start
        print(self.stage.name, step, f"loss {mean:.3f}", *shares, f"{seconds:.0f} s", flush=True)
        for each in (self.losses, self.right, self.asked):
            each.clear()


def train(model: Any, heads: Heads, data: Data, stage: Stage, seed: int) -> None:
    """Trains a model in place."""
    generator = torch.Generator().manual_seed(seed)
    trained = nn.ModuleList([model if stage.answers else model.model.vision_tower, heads])
    parameters = list(trained.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )
    model.train()
    progress = Progress(stage)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * schedule(step / stage.steps)
        if len(order) < BATCH:
            order = torch.randperm(len(data.pixels), generator=generator)
        index, order = order[:BATCH], order[BATCH:]
        shapes, colours = data.shapes[index].long(), data.colours[index].long()
        seen = model.model.vision_tower(
            to_pixel_values(data.pixels[index]), output_hidden_states=True
        )
        tokens = seen.hidden_states[model.config.vision_feature_layer][:, 1:]
        loss = heads.loss(tokens, seen.pooler_output, shapes, colours)
        if stage.answers:
            ids = kept_ids(stage.drop, shapes > 0, generator)
            kept = tokens.gather(1, ids[..., None].expand(-1, -1, WIDTH))
            of_batch = data.asked.take(index)
            logits = ask(
                model,
                model.model.multi_modal_projector(kept),
                of_batch,
                torch.arange(ids.shape[1]).expand(BATCH, -1),
                ids.shape[1],
            )
            loss = 0.3 * loss + answer_loss(logits, of_batch)
            progress.answered(logits[:, :, 0].argmax(-1) == of_batch.answers, data.kinds[index])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        progress.after(step + 1, loss.item())
    model.eval()


def schedule(done: float) -> float:
    """Share of the learning rate: a short rise, then half a cosine."""
    rise = 0.05
    if done < rise:
        return (done + 1e-3) / rise
    return 0.5 * (1 + math.cos(math.pi * (done - rise) / (1 - rise))) + 0.01


def kept_ids(drop: float, on_object: Tensor, generator: torch.Generator) -> Tensor:
    """Ascending ids ``[B, T]`` of the tokens of a step: of all, or of a random budget.

    How much those on objects are preferred is random by image.
    """
    batch = len(on_object)
    if float(torch.rand((), generator=generator)) >= drop:
        return torch.arange(TOKENS).expand(batch, -1)
    budget = BUDGETS[int(torch.randint(len(BUDGETS), (), generator=generator))]
    preference = torch.rand(batch, 1, generator=generator) * on_object
    score = torch.rand(batch, TOKENS, generator=generator) + preference
    return score.topk(budget, 1).indices.sort(1).values


def answer_loss(logits: Tensor, asked: Asked) -> Tensor:
    """Cross-entropy of the answers, and a little of the end behind them."""
    index = asked.last[..., None] + torch.tensor([1, 2])
    target = asked.ids.gather(2, index)
    loss = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none")
    answer, end = loss.view(-1, 2).mean(0)
    return answer + 0.05 * end


def save(model: Any, folder: Path) -> None:
    """A folder that transformers loads, in half precision."""
    copy.deepcopy(model).half().save_pretrained(folder)
    make_processor().save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, and leaves both models in a folder."""
    parser = argparse.ArgumentParser(prog="python -m bench.retention.train", description=__doc__)
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the models' folders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=float, default=1.0, help="share of the steps, for a try")
    given = parser.parse_args(arguments)
    # More threads may sum in another order.
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    model, heads = make_model(), Heads()
    data = training_scenes()
    done = []
    for number, stage in enumerate(STAGES):
        stage = replace(stage, steps=max(1, round(given.steps * stage.steps)))
        train(model, heads, data, stage, seed=given.seed + number)
        done.append(f"{stage.steps} steps of the stage {stage.name!r}")
        if stage.saved_as:
            folder = given.output / stage.saved_as
            save(model, folder)
            write_card(folder, done, given.seed, SEEDS)
            print(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
