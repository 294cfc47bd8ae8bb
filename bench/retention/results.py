"""What models answered with some of their tokens: result files ``<results>/<model>.json``.

They hold whether each question was answered rightly, so every figure and its interval follow from
them without the model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bench.results import ResultError, parse, read_json
from bench.retention.scenes import KINDS, QUESTIONS, SIZES
from ocvtp_kernels.files import atomic_write

Positions = Literal["consecutive", "original"]
UNPRUNED, RANDOM, OC_PRUNER = "unpruned", "random", "oc-pruner"
# Without the scene's picture: what the words of a question alone are good for.
BLIND = ("another picture", "no picture", "commonest answer")
SIZED = ("colour", "shape", "where")  # kinds whose questions are about one object that is there
QUANTILE = 1.96  # of 95 %


class Estimate(NamedTuple):
    """A mean over questions, and its standard error."""

    mean: float
    error: float

    @property
    def half_width(self) -> float:
        """Of the 95 % interval."""
        return QUANTILE * self.error

    @property
    def is_above_zero(self) -> bool:
        """Whether the whole interval is."""
        return self.mean > self.half_width


@dataclass(frozen=True)
class Row:
    """The answers of one method.

    Attributes:
        method: see `bench.retention.methods`, or `UNPRUNED` or one of `BLIND`.
        budget: tokens kept; None: the method drops none.
        positions: of kept tokens in the text model: 0 to T-1, or those that they had among all.
        seed: of what is random in the method.
        on_objects: share of the kept tokens that lie on an object.
        right: a bit a question, the first one highest, as hexadecimal digits.
        mean_tokens: that a layer of the text model reads of the picture, where tokens are dropped
            between layers.
        equal_budget: the budget at which the text model costs as much when it is handed that many.
    """

    method: str
    budget: int | None
    positions: Positions
    seed: int | None
    on_objects: float | None
    right: str
    mean_tokens: float | None = None
    equal_budget: int | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """Unique among the rows of a file."""
        return self.method, self.budget, self.positions, self.seed


@dataclass
class Retention:
    """A result file: the model, the scenes it was asked about, and its answers.

    Attributes:
        model: its folder's name.
        model_sha256: of its weights.
        pruners_sha256: of the files of pruners, by method.
        seed, scenes: of `make_scenes`.
        kinds: a digit a question: its place in `KINDS`.
        sizes: a digit a question: 1 + the place in `SIZES` of the object asked about, or 0.
        device, versions, commit, date: of the evaluation.
    """

    model: str
    model_sha256: str
    pruners_sha256: dict[str, str]
    seed: int
    scenes: int
    kinds: str
    sizes: str
    device: str
    versions: dict[str, str | None]  # None: not installed
    commit: str
    date: str = field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds")
    )
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        questions = self.scenes * QUESTIONS
        for name, most in (("kinds", len(KINDS) - 1), ("sizes", len(SIZES))):
            digits = getattr(self, name)
            if len(digits) != questions or not set(digits) <= set(map(str, range(most + 1))):
                raise ValueError(f"{name}: expected {questions} digits of 0 to {most}")
        for row in self.rows:
            if len(row.right) != -(-questions // 4):
                raise ValueError(f"right: expected {questions} bits in {row.method}'s row")

    def path(self, folder: Path) -> Path:
        """The file's in a folder of results."""
        return folder / f"{self.model}.json"

    def add_rows_of(self, other: Retention) -> None:
        """Takes over the rows that are not here.

        Raises:
            ValueError: they are of another model, pruner, scenes, versions, commit or device, or of
                a commit that does not tell what ran.
        """
        for name in ("model_sha256", "seed", "scenes", "kinds", "sizes", "device", "versions"):
            now, then = getattr(self, name), getattr(other, name)
            if now != then:
                raise ValueError(
                    f"{name}: expected rows of {now!r:.80} to add to, got {then!r:.80}"
                )
        if self.commit != other.commit or not self.commit.isalnum() or self.commit == "unknown":
            raise ValueError(
                f"commit: expected rows of one clean commit, got {other.commit} and {self.commit}"
            )
        pruners = other.pruners_sha256 | self.pruners_sha256
        for name in pruners.keys() & other.pruners_sha256.keys():
            if pruners[name] != other.pruners_sha256[name]:
                raise ValueError(
                    f"pruners_sha256: expected the file of {name} that was asked about"
                )
        mine = {row.key for row in self.rows}
        self.rows = [row for row in other.rows if row.key not in mine] + self.rows
        self.pruners_sha256 = pruners

    def save(self, folder: Path) -> Path:
        """Writes ``<model>.json`` in ``folder`` atomically; returns its path."""
        path = self.path(folder)
        atomic_write(path, json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")
        return path

    def right(self, rows: Sequence[Row]) -> Tensor:
        """Whether answers are right, ``[rows, scenes, QUESTIONS]`` of float64 0 and 1."""
        questions = self.scenes * QUESTIONS
        return torch.stack([unpack(row.right, questions).view(-1, QUESTIONS) for row in rows])

    def asked(self, kind: str = "", size: str = "") -> Tensor:
        """Which questions are of a kind, or about an object of a size: ``[scenes, QUESTIONS]``.

        Of sizes only questions of the kinds in `SIZED` count.
        """
        kinds, sizes = (_digits(each).view(-1, QUESTIONS) for each in (self.kinds, self.sizes))
        if kind:
            return kinds == KINDS.index(kind)
        if size:
            sized = torch.isin(kinds, torch.tensor([KINDS.index(each) for each in SIZED]))
            return sized & (sizes == 1 + list(SIZES).index(size))
        return torch.ones_like(kinds, dtype=torch.bool)


def read_retention(path: Path) -> Retention:
    """A result file.

    Raises:
        ResultError: it cannot be read, or something in it is not what a run writes.
    """
    found: Retention = parse(Retention, read_json(path), str(path))
    if len({row.key for row in found.rows}) < len(found.rows):
        raise ResultError(f"{path}: rows: two of one method, budget, positions and seed")
    return found


def pack(right: Tensor) -> str:
    """Booleans as `Row.right` has them."""
    bits = "".join(map(str, right.flatten().int().tolist()))
    return f"{int(bits, 2):0{-(-len(bits) // 4)}x}"


def unpack(digits: str, count: int) -> Tensor:
    """``count`` of `pack`'s booleans, as float64 0 and 1."""
    return _digits(f"{int(digits, 16):0{count}b}").double()


def _digits(text: str) -> Tensor:
    return torch.tensor(bytearray(text, "ascii")).long() - ord("0")


def accuracy(right: Tensor, asked: Tensor) -> Estimate:
    """The share of right answers.

    The standard error is clustered by scene, since questions come several to a scene; where a
    method has several seeds, the variance of their mean is added.

    Args:
        right: ``[seeds, scenes, QUESTIONS]``.
        asked: bool ``[scenes, QUESTIONS]``, the questions that count.
    """
    return _estimate(right.mean(0), asked, _of_seeds(right, asked))


def difference(right: Tensor, other: Tensor, asked: Tensor) -> Estimate:
    """The share of right answers minus another method's, paired question by question."""
    variance = _of_seeds(right, asked) + _of_seeds(other, asked)
    return _estimate(right.mean(0) - other.mean(0), asked, variance)


def _estimate(values: Tensor, asked: Tensor, variance: float) -> Estimate:
    scenes, count = len(values), int(asked.sum())
    if not count:
        return Estimate(float("nan"), float("nan"))
    mean = float(values[asked].mean())
    of_scene = ((values - mean) * asked).sum(1)
    clustered = scenes / max(scenes - 1, 1) * float(of_scene.square().sum()) / count**2
    return Estimate(mean, (clustered + variance) ** 0.5)


def _of_seeds(right: Tensor, asked: Tensor) -> float:
    """The variance of the mean over seeds; 0 of one."""
    seeds = len(right)
    return float(right[:, asked].mean(1).var()) / seeds if seeds > 1 else 0.0
