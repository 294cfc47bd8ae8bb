"""How many questions a model still answers: ``python -m bench retention``.

The tiny LLaVA is asked about scenes that it was not trained on, with the tokens that each method
keeps. Most methods drop tokens before the text model, so features are made once and all questions
of a scene are asked in one sequence, which gives the answers of ``generate``; what drops tokens in
the text model is asked by ``generate`` itself. Beside it stand some of the others at the budget
where the text model costs as much. ``python -m bench report`` makes tables and a picture of the
result files.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

import ocvtp_kernels as ocvtp
from bench.checkout import commit
from bench.machine import RESULTS, device_name, versions
from bench.retention.asking import ask, encode_questions
from bench.retention.methods import (
    Method,
    all_features,
    generate,
    keep,
    pruner_method,
    to_pixel_values,
    training_free,
)
from bench.retention.model import FOLDER, PRUNER, TOKENS, language_of, load
from bench.retention.results import (
    BLIND,
    OC_PRUNER,
    UNPRUNED,
    Positions,
    Retention,
    Row,
    pack,
    read_retention,
)
from bench.retention.scenes import KINDS, SIZES, Scene, make_scenes
from bench.retention.train import SCENES_OF_SEED, SEEDS
from ocvtp_kernels.cost.layers import PROGRESSIVE, LanguageCost, language_cost, tokens_by_layer
from ocvtp_kernels.selectors.interface import stages_of

MODELS = ("tiny-llava-undropped", "tiny-llava")
POSITIONS: tuple[Positions, ...] = get_args(Positions)
PEERS = (OC_PRUNER, "divprune")  # asked at budgets of equal cost too


class Evaluation:
    """A model, the scenes that it is asked about, and the rows that come of it.

    Args:
        folder: of the model.
        scenes: not of its training.
        positions: those that are wanted.
    """

    def __init__(
        self, folder: Path, scenes: Sequence[Scene], positions: Sequence[Positions]
    ) -> None:
        self.model, self.processor = load(folder)
        self.scenes, self.positions = scenes, positions
        self.pixels = to_pixel_values(self.processor, scenes)
        self.asked = encode_questions(scenes)
        self.on_object = torch.stack([torch.from_numpy(scene.shapes) > 0 for scene in scenes])

    @torch.no_grad()
    def answers(self, features: Tensor, ids: Tensor, positions: Positions) -> Tensor:
        """The first word of every answer, ``[B, QUESTIONS]``, from tokens ``[B, T, D]``."""
        consecutive = torch.arange(ids.shape[1]).expand_as(ids)
        where = (consecutive, ids.shape[1]) if positions == "consecutive" else (ids, TOKENS)
        return ask(self.model, features, self.asked, *where)[:, :, 0].argmax(-1)

    def right(self, answers: Tensor) -> str:
        """Which answers are right, as a row has it."""
        return pack(answers == self.asked.answers)

    def unpruned(self) -> Iterator[Row]:
        """All tokens; those of the next scene; and zeros."""
        features = all_features(self.model, self.pixels)
        ids = torch.arange(TOKENS).expand(len(features), -1)
        seen = (features, features.roll(1, 0), torch.zeros_like(features))
        for name, each in zip((UNPRUNED, *BLIND[:2]), seen, strict=True):
            # All tokens have the same positions either way.
            right = self.right(self.answers(each, ids, "original"))
            yield from (Row(name, None, where, None, None, right) for where in self.positions)

    def commonest(self) -> Iterator[Row]:
        """The commonest answer to the same words in training."""
        answers = commonest_answers()
        right = [q.answer == answers.get(q.text) for scene in self.scenes for q in scene.questions]
        packed = pack(torch.tensor(right))
        yield from (Row(BLIND[2], None, where, None, None, packed) for where in self.positions)

    def pruned(self, name: str, method: Method, budget: int) -> Iterator[Row]:
        """A row a seed and positions."""
        for seed in method.seeds:
            head = seed if len(method.seeds) > 1 else None
            if method.in_decoder:
                if "original" in self.positions:
                    answers, share = self._in_decoder(method, seed, budget)
                    right, found = self.right(answers), self.cost_in_decoder(method, budget)
                    costs = found.mean_tokens, found.equal_budget
                    yield Row(name, budget, "original", head, share, right, *costs)
                continue
            features, ids = keep(self.model, self.processor, method, seed, budget, self.pixels)
            for where in self.positions:
                right = self.right(self.answers(features, ids, where))
                yield Row(name, budget, where, head, self._on_objects(ids), right)

    def cost_in_decoder(self, method: Method, budget: int) -> LanguageCost:
        """What the text model costs, for a question of the mean number of words."""
        language = language_of(self.model)
        stages = stages_of(method.make(method.seeds[0]), budget, language.layers)
        by_layer = tokens_by_layer(stages, TOKENS, budget, language.layers)
        words = 1 + float(self.asked.last.double().mean())
        return language_cost(language, by_layer, round(words))

    def _in_decoder(self, method: Method, seed: int, budget: int) -> tuple[Tensor, float]:
        """The answers, and the share of the last stage's tokens that lie on an object."""
        answers, shares, layer = [], [], method.reference_layer
        given = self.model, self.processor, method.make(seed), budget
        with ocvtp.attach(*given, reference_layer=layer) as handle:
            asked = generate(self.model, self.processor, self.scenes)
            for answer, on_object in zip(asked, self.on_object, strict=True):
                answers.append(answer)
                assert handle.last is not None
                # Each question may keep other tokens of the picture.
                shares += [on_object[ids].float().mean() for ids in handle.last.ids]
        return torch.stack(answers), float(torch.stack(shares).mean())

    def _on_objects(self, ids: Tensor) -> float:
        return float(self.on_object.gather(1, ids).float().mean())


@functools.cache
def commonest_answers() -> dict[str, str]:
    """By a question's words, the commonest answer in the training scenes."""
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for seed in SEEDS:
        for scene in make_scenes(SCENES_OF_SEED, seed):
            for question in scene.questions:
                answers[question.text][question.answer] += 1
    return {text: counts.most_common(1)[0][0] for text, counts in answers.items()}


def evaluate(
    folder: Path,
    scenes: Sequence[Scene],
    methods: dict[str, Method],
    given: argparse.Namespace,
    earlier: Sequence[Row] = (),
) -> Iterator[Row]:
    """The rows of a model, printed as they come.

    Args:
        earlier: rows to whose budgets of equal cost `PEERS` are asked too.
    """
    evaluation = Evaluation(folder, scenes, given.positions)
    yield from evaluation.unpruned()
    if BLIND[2] in given.methods:
        yield from evaluation.commonest()

    def asked(name: str, budget: int) -> list[Row]:
        start = time.perf_counter()
        rows = list(evaluation.pruned(name, methods[name], budget))
        right = sum(int(row.right, 16).bit_count() for row in rows)
        share = right / max(len(rows), 1) / evaluation.asked.answers.numel()
        seconds = time.perf_counter() - start
        print(f"{folder.name} {name} T {budget}: {share:.1%}, {seconds:.1f} s", flush=True)
        return rows

    rows = [*earlier]
    for name, method in methods.items():
        for budget in (each for each in given.budgets if each >= method.least):
            yield from (found := asked(name, budget))
            rows += found
    equal = {row.equal_budget for row in rows if row.equal_budget is not None}
    evaluation.positions = ("original",)  # those of tokens dropped in the text model
    for name in (peer for peer in PEERS if peer in methods):
        for budget in sorted(equal - {*given.budgets}, reverse=True):
            yield from asked(name, budget)


def sha256(path: Path) -> str:
    """Of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def new_retention(folder: Path, scenes: Sequence[Scene], seed: int) -> Retention:
    """A result file of a model without rows."""
    questions = [question for scene in scenes for question in scene.questions]
    sizes = ["", *SIZES]
    return Retention(
        model=folder.name,
        model_sha256=sha256(folder / "model.safetensors"),
        pruners_sha256={},
        seed=seed,
        scenes=len(scenes),
        kinds="".join(str(KINDS.index(question.kind)) for question in questions),
        sizes="".join(str(sizes.index(question.size)) for question in questions),
        device=device_name(torch.device("cpu")),
        versions=versions(),
        commit=commit(),
    )


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command's arguments."""
    known = [*training_free(), OC_PRUNER, PROGRESSIVE, BLIND[2]]

    def some_of(names: Sequence[str]) -> Any:
        def parse(text: str) -> list[str]:
            found = text.split(",")
            if unknown := [name for name in found if name not in names]:
                raise argparse.ArgumentTypeError(f"no {unknown[0]!r} among {', '.join(names)}")
            return found

        return parse

    def numbers(text: str) -> list[int]:
        found = [int(part) for part in text.split(",")]
        if not all(0 < number < TOKENS for number in found):
            raise argparse.ArgumentTypeError(f"expected numbers of 1 to {TOKENS - 1}, got {text}")
        return found

    parser = argparse.ArgumentParser(
        prog="python -m bench retention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    models = [FOLDER / name for name in MODELS]
    add("--models", type=Path, nargs="+", default=models, metavar="DIR", help="their folders")
    add("--scenes", type=int, default=125, help="that the model is asked about, 8 times each")
    add("--seed", type=int, default=7, help="of the scenes")
    add("--methods", type=some_of(known), default=known, help="some of " + ", ".join(known))
    add("--budgets", type=numbers, default=[50, 22, 11, 5], help=f"of {TOKENS} tokens")
    add("--positions", type=some_of(POSITIONS), default=POSITIONS, help=" or ".join(POSITIONS))
    said = "file of an OC-pruner beside the models' own; may be given several times"
    add("--pruner", type=Path, action="append", default=[], metavar="FILE", help=said)
    said = "that a pruner decides on: once for all of them, or once each"
    add("--reference-layer", type=int, action="append", default=[], metavar="N", help=said)
    add("--add", action="store_true", help="keep the other rows of the results, of the same commit")
    add("--output", type=Path, default=RESULTS / "retention", metavar="DIR", help="of the results")
    given = parser.parse_args(arguments)
    if not 2 <= given.scenes <= 10_000:
        parser.error(f"--scenes: expected 2 to 10000, got {given.scenes}")
    layers = given.reference_layer
    if len(layers) <= 1:
        given.reference_layer = (layers or [None]) * len(given.pruner)
    elif len(layers) != len(given.pruner):
        parser.error(f"--reference-layer: expected one or one a pruner, got {len(layers)}")
    for path in (*given.pruner, *(folder / "config.json" for folder in given.models)):
        if not path.is_file():
            parser.error(f"no such file: {path}")
    return given


def main(arguments: Sequence[str]) -> int:
    """Evaluates and saves; returns the exit status."""
    given = read_arguments(arguments)
    chosen = {name: each for name, each in training_free().items() if name in given.methods}
    scenes = make_scenes(given.scenes, given.seed)
    for folder in given.models:
        own = [name for name in (OC_PRUNER, PROGRESSIVE) if name in given.methods]
        own = own if (folder / PRUNER).is_file() else []
        pruners = {name: (folder / PRUNER, None, name == PROGRESSIVE) for name in own}
        for path, layer in zip(given.pruner, given.reference_layer, strict=True):
            name = f"{OC_PRUNER} {path.stem}" + ("" if layer is None else f"@{layer}")
            pruners[name] = path, layer, False
        methods = chosen | {name: pruner_method(*each) for name, each in pruners.items()}
        results = new_retention(folder, scenes, given.seed)
        results.pruners_sha256 = {name: sha256(path) for name, (path, *_) in pruners.items()}
        before = results.path(given.output)
        found = read_retention(before) if given.add and before.is_file() else None
        if found is not None:
            # What cannot be added to is told before anything is asked.
            replace(results, rows=[]).add_rows_of(found)
        earlier = [] if found is None else found.rows
        results.rows += evaluate(folder, scenes, methods, given, earlier)
        if found is not None:
            results.add_rows_of(found)
        print(results.save(given.output))
    return 0
