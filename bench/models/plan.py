"""What is timed end to end, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

from bench.models.calls import MODES
from bench.models.llava import LLAVA, LLAVA_13B, NEXT, TINY, TINY_NEXT, Choice, Mode, Shape
from bench.results import ModelRow, ModelTimes

CROWDED = 32  # a batch whose caches do not all fit beside each other

Variation = tuple[Mode, Choice]


@dataclass(frozen=True)
class Job:
    """A model at a batch, with every selector at some budgets, and unpruned."""

    shape: Shape
    batch: int
    budgets: tuple[int, ...]
    unpruned: bool = True  # False: another job times it

    def __str__(self) -> str:
        return f"{self.shape.name}, batch {self.batch}"

    @property
    def choices(self) -> list[Choice]:
        """The unpruned model first."""
        kept = [Choice(name, budget) for budget in self.budgets for name in ("ocvtp", "random")]
        whole = [Choice("unpruned", self.shape.num_tokens)] if self.unpruned else []
        return [*whole, *kept]

    @property
    def groups(self) -> list[list[Variation]]:
        """The modes and choices that are interleaved, and in memory at once.

        A budget each, whose rows are there as soon as it is done; the unpruned model takes turns
        with the first, unless the batch is so large that it is alone.
        """
        groups: dict[object, list[Variation]] = {}
        for choice in self.choices:
            for mode in MODES:
                key: object = choice.budget
                if choice.selector == "unpruned":
                    key = mode if self.batch >= CROWDED else self.budgets[0]
                groups.setdefault(key, []).append((mode, choice))
        return list(groups.values())

    def rows(self, note: str) -> list[ModelRow]:
        """A row of every variation, and the reason why none has times."""
        return [self.row(one, None, note) for group in self.groups for one in group]

    def row(self, variation: Variation, times: ModelTimes | None, note: str) -> ModelRow:
        """A variation's row, with its times or the reason why there are none."""
        mode, choice = variation
        head = (self.shape.name, mode, choice.selector, self.batch, choice.budget)
        return ModelRow(*head, self.shape.num_tokens, times, note)


def plan(device: str, short: bool) -> list[Job]:
    """What a run times, the most important first, since a run may have a deadline."""
    headlines = [Job(shape, 1, shape.budgets[:1]) for shape in (NEXT, LLAVA)]
    if device == "cpu":
        batches = (1,) if short else (1, 2)
        tiny = ((shape, batch) for shape in (TINY, TINY_NEXT) for batch in batches)
        return [Job(s, batch, s.budgets[:1] if short else s.budgets) for s, batch in tiny]
    if short:
        return headlines
    # A model used later again is made again.
    others = [Job(shape, 1, shape.budgets[1:], unpruned=False) for shape in (LLAVA, NEXT)]
    order = [(LLAVA, 8), (LLAVA, 32), (NEXT, 8), (LLAVA_13B, 1)]
    order += [(LLAVA_13B, 8), (NEXT, 32), (LLAVA_13B, 32)]
    return [*headlines, *others, *(Job(shape, batch, shape.budgets) for shape, batch in order)]
