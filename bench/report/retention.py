"""The page about retention: Markdown from the result files of `bench.retention`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from bench.report.tables import grouped
from bench.report.text import bullets, folded, versions_text
from bench.retention.results import (
    BLIND,
    RANDOM,
    UNPRUNED,
    Estimate,
    Positions,
    Retention,
    Row,
    accuracy,
    difference,
    read_retention,
)
from bench.retention.scenes import KINDS, QUESTIONS, SIZES
from ocvtp_kernels.markdown import markdown_table

FOLDER, PICTURE = "retention", "accuracy.png"  # of the result files, and beside them
MODELS = {  # in the order of the page
    "tiny-llava-undropped": "Trained with all tokens, as released models are",
    "tiny-llava": "Trained with dropped tokens too",
}
POSITIONS: dict[Positions, str] = {
    "original": "kept tokens at their original positions",
    "consecutive": "kept tokens at consecutive positions",
}
LEGEND = (
    "Right answers in per cent, ± half the 95 % interval. The standard error is clustered by "
    f"scene, as {QUESTIONS} questions share one. A method with something random in it has several "
    "seeds: here is their mean, whose variance is in the interval, and in brackets the least and "
    "the most of them. † does not beat random: the 95 % interval of the difference, paired "
    "question by question, reaches 0. Blind: answers from another scene's picture, from features "
    "of zeros, and the commonest answer to the same words in training. @1 and @2 of vlm-pruner, "
    "fastv and dart: before this decoder layer, 2 as published; @ of oc-pruner: the reference "
    "layer, if not the default. T of a method that drops tokens in the text model: those that its "
    "last layer reads."
)
EQUAL_COST = (
    "Methods that drop tokens between layers of the text model, and others at the budget where it "
    "costs as much: the most tokens that it may be handed for no more FLOPs of its layers. Tokens "
    "a layer: their mean over layers. In brackets the points by which the other one is ahead, "
    "paired question by question."
)


class Answers:
    """The rows of a file with kept tokens at some positions.

    Attributes:
        budgets: that most methods were asked at, the largest first; one that cannot keep so few
            tokens is not there.
        methods: the best first, by the mean over budgets.
        others: unpruned and blind.
    """

    def __init__(self, file: Retention, positions: Positions) -> None:
        self.file, self.positions = file, positions
        mine = [row for row in file.rows if row.positions == positions]
        self._rows = grouped(mine, lambda row: (row.method, row.budget))
        self._right = {key: file.right(rows) for key, rows in self._rows.items()}
        self._asked = {kind: file.asked(kind=kind) for kind in KINDS}
        self._asked |= {size: file.asked(size=size) for size in SIZES} | {"": file.asked()}
        asked = grouped([row for row in mine if row.budget is not None], lambda row: row.method)
        pruned = {name: {row.budget for row in rows} for name, rows in asked.items()}
        times = Counter(budget for budgets in pruned.values() for budget in budgets)
        shared = [each for each, count in times.items() if each and 2 * count > len(pruned)]
        self.budgets = sorted(shared, reverse=True)
        self.methods = sorted(pruned, key=lambda name: (-self._mean(name), name))
        self.others = [name for name in (UNPRUNED, *BLIND) if (name, None) in self._rows]

    @property
    def title(self) -> str:
        """The model and the positions."""
        return f"{self.file.model}, {POSITIONS[self.positions]}"

    def budgets_of(self, method: str) -> list[int]:
        """Those that a method was asked at; of what drops nothing, all."""
        whole = (method, None) in self._rows
        return [each for each in self.budgets if whole or (method, each) in self._rows]

    def rows(self, method: str, budget: int) -> list[Row]:
        """A row a seed; of what drops nothing, the same for every budget."""
        return self._rows.get((method, budget)) or self._rows[method, None]

    def right(self, method: str, budget: int) -> Tensor:
        """See `Retention.right`."""
        right = self._right.get((method, budget))
        return self._right[method, None] if right is None else right

    def share(self, method: str, budget: int, of: str = "") -> Estimate:
        """Of right answers, to all questions or to those of a kind or about a size."""
        return accuracy(self.right(method, budget), self._asked[of])

    def over_random(self, method: str, budget: int) -> Estimate | None:
        """The difference to random choice; None of itself, or without it."""
        if method not in self.methods or method == RANDOM or RANDOM not in self.methods:
            return None
        right, other = self.right(method, budget), self.right(RANDOM, budget)
        return difference(right, other, self._asked[""])

    def is_no_better(self, method: str, budget: int) -> bool:
        """Whether a method does not beat random choice."""
        over = self.over_random(method, budget)
        return over is not None and not over.is_above_zero

    @property
    def in_decoder(self) -> list[Row]:
        """Of each method and budget that drops tokens in the text model, the first row."""
        first = [
            self.rows(name, budget)[0] for name in self.methods for budget in self.budgets_of(name)
        ]
        return [row for row in first if row.equal_budget is not None]

    @property
    def peers(self) -> list[str]:
        """The methods that were asked at every budget of equal cost."""
        wanted = {row.equal_budget for row in self.in_decoder} - {None}
        return [
            name for name in self.methods if wanted and all((name, b) in self._rows for b in wanted)
        ]

    def ahead(self, peer: str, row: Row) -> Estimate:
        """By how much a method is ahead of another one's row, at its budget of equal cost."""
        assert row.equal_budget is not None and row.budget is not None
        theirs = self.right(peer, row.equal_budget)
        return difference(theirs, self.right(row.method, row.budget), self._asked[""])

    def _mean(self, method: str) -> float:
        budgets = self.budgets_of(method)
        return sum(self.share(method, budget).mean for budget in budgets) / max(1, len(budgets))


def read_files(folder: Path) -> list[Retention]:
    """The result files of a folder, in the page's order.

    Raises:
        ResultError: one is malformed.
    """
    files = [read_retention(path) for path in sorted(folder.glob("*.json"))]
    return sorted(files, key=lambda file: [*MODELS, file.model].index(file.model))


def answers(files: Sequence[Retention]) -> list[Answers]:
    """A model and positions each, in the page's order."""
    every = [Answers(file, positions) for file in files for positions in POSITIONS]
    return [each for each in every if each.methods]


def block(files: Sequence[Retention], folder: str) -> str:
    """What stands between the markers of docs/retention.md.

    Args:
        files: those of `read_files`.
        folder: of the picture and of `page`, seen from there.
    """
    blocks = [f"![accuracy against T]({folder}/{PICTURE})", LEGEND]
    for each in answers(files):
        blocks += [f"### {each.title}", _asked(each.file), accuracy_table(each), no_better(each)]
        blocks += _equal_cost(each, "####")
    blocks += [f"[By kind of question, and over random, with intervals]({folder}/README.md)."]
    blocks += ["### Where these figures come from", bullets(map(_source, files))]
    return "\n\n".join(each for each in blocks if each)


def page(files: Sequence[Retention]) -> str:
    """The page beside the result files: every figure of theirs."""
    blocks = ["# Retention", f"![accuracy against T]({PICTURE})", LEGEND]
    for each in answers(files):
        blocks += [f"## {each.title}", _asked(each.file), accuracy_table(each), no_better(each)]
        blocks += _equal_cost(each, "###")
        blocks += [folded("Points over random", difference_table(each))]
        blocks += [
            folded(f"By kind, T {budget}", kinds_table(each, budget)) for budget in each.budgets
        ]
    blocks += [bullets(map(_source, files))]
    return "\n\n".join(each for each in blocks if each) + "\n"


def accuracy_table(its: Answers) -> str:
    """A line a method, a column a budget."""

    def cell(method: str, budget: int) -> str:
        text, right = _text(its.share(method, budget)), its.right(method, budget)
        if len(right) > 1:
            shares = (100 * right.flatten(1).mean(1)).tolist()
            text += f" ({min(shares):.1f} to {max(shares):.1f})"
        return text + (" †" if its.is_no_better(method, budget) else "")

    return _by_budget(its, _with_others(its), cell)


def no_better(its: Answers) -> str:
    """The sentence of what does not beat random; empty if everything does."""
    found = {
        method: [f"{each}" for each in its.budgets_of(method) if its.is_no_better(method, each)]
        for method in its.methods
    }
    said = [f"{method} at T {', '.join(budgets)}" for method, budgets in found.items() if budgets]
    return f"Does not beat random: {'; '.join(said)}." if said else ""


def difference_table(its: Answers) -> str:
    """Points over random choice, paired."""

    def cell(method: str, budget: int) -> str:
        over = its.over_random(method, budget)
        return "" if over is None else f"{100 * over.mean:+.1f} ± {100 * over.half_width:.1f}"

    return _by_budget(its, [name for name in its.methods if name != RANDOM], cell)


def equal_cost_table(its: Answers) -> str:
    """A line a method in the text model and budget, and others at the budget of equal cost."""

    def cell(peer: str, row: Row) -> str:
        ahead, budget = its.ahead(peer, row), row.equal_budget
        assert budget is not None
        gap = f"{100 * ahead.mean:+.1f} ± {100 * ahead.half_width:.1f}"
        return f"{100 * its.share(peer, budget).mean:.1f} ({gap})"

    lines = [
        [
            row.method,
            f"{row.budget}",
            f"{row.mean_tokens:.1f}",
            _text(its.share(row.method, row.budget or 0)),
            f"{row.equal_budget}",
            *(cell(peer, row) for peer in its.peers),
        ]
        for row in its.in_decoder
    ]
    header = ["method", "T", "tokens a layer", "right", "T of equal cost", *its.peers]
    return markdown_table(header, lines)


def _equal_cost(its: Answers, heading: str) -> list[str]:
    if not its.in_decoder:
        return []
    return [f"{heading} At equal cost, {its.file.model}", EQUAL_COST, equal_cost_table(its)]


def kinds_table(its: Answers, budget: int) -> str:
    """By kind of question, by size of the object asked about, and what was kept."""

    def line(method: str) -> list[str]:
        shares = [row.on_objects for row in its.rows(method, budget) if row.on_objects is not None]
        return [
            _name(method),
            *(_text(its.share(method, budget, of)) for of in (*KINDS, *SIZES)),
            f"{100 * sum(shares) / len(shares):.0f}" if shares else "",
        ]

    header = ["method", *KINDS, *SIZES, "% of kept tokens on objects"]
    asked = [method for method in _with_others(its) if budget in its.budgets_of(method)]
    return markdown_table(header, map(line, asked))


def _with_others(its: Answers) -> list[str]:
    return [*its.others[:1], *its.methods, *its.others[1:]]


def _by_budget(its: Answers, methods: Sequence[str], cell: Callable[[str, int], str]) -> str:
    lines = [
        [_name(name), *(cell(name, b) if b in its.budgets_of(name) else "" for b in its.budgets)]
        for name in methods
    ]
    return markdown_table(["method", *(f"T {budget}" for budget in its.budgets)], lines)


def _name(method: str) -> str:
    return f"blind: {method}" if method in BLIND else method


def _text(share: Estimate) -> str:
    return f"{100 * share.mean:.1f} ± {100 * share.half_width:.1f}"


def _asked(file: Retention) -> str:
    said = f"{file.scenes * QUESTIONS} questions about {file.scenes} scenes of seed {file.seed}"
    return f"{MODELS.get(file.model, file.model)}; {said}."


def _source(file: Retention) -> str:
    hashes = {"model.safetensors": file.model_sha256} | file.pruners_sha256
    weights = ", ".join(f"{name} {sha[:12]}" for name, sha in hashes.items())
    ran = versions_text(file.versions, file.commit)
    return f"{file.model}.json: {weights} (SHA-256); {file.device}; {ran}; {file.date}"
