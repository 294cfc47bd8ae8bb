"""What is timed end to end, in which order, and how a row of it reads."""

from __future__ import annotations

from dataclasses import dataclass

from bench.llava_calls import MODES
from bench.llava_models import (
    LLAVA,
    LLAVA_13B,
    NEXT,
    OCVTP,
    RANDOM,
    TINY,
    TINY_NEXT,
    UNPRUNED,
    Choice,
    Shape,
)
from bench.results import EndToEnd

TINY_BATCHES = (1, 2)
CROWDED = 32  # a batch whose caches do not all fit beside each other


@dataclass(frozen=True)
class Job:
    """A model at a batch, with every selector at some budgets, and unpruned."""

    shape: Shape
    batch: int
    budgets: tuple[int, ...]
    unpruned: bool = True  # False: another job times it

    @property
    def choices(self) -> list[Choice]:
        """The unpruned model first."""
        kept = [Choice(name, budget) for budget in self.budgets for name in (OCVTP, RANDOM)]
        whole = [Choice(UNPRUNED, self.shape.num_tokens)] if self.unpruned else []
        return [*whole, *kept]

    @property
    def groups(self) -> list[list[tuple[str, Choice]]]:
        """The modes and choices that are interleaved, and in memory at once.

        A budget each, whose rows are there as soon as it is done; the unpruned model takes turns
        with the first, unless the batch is so large that it is alone.
        """
        groups: dict[object, list[tuple[str, Choice]]] = {}
        for choice in self.choices:
            for mode in MODES:
                key: object = choice.budget
                if choice.selector == UNPRUNED:
                    key = mode if self.batch >= CROWDED else self.budgets[0]
                groups.setdefault(key, []).append((mode, choice))
        return list(groups.values())


def plan(device: str, short: bool) -> list[Job]:
    """What a run times, the most important first, since a run may have a deadline."""
    headlines = [Job(shape, 1, shape.budgets[:1]) for shape in (NEXT, LLAVA)]
    if device == "cpu":
        batches = (1,) if short else TINY_BATCHES
        tiny = ((shape, batch) for shape in (TINY, TINY_NEXT) for batch in batches)
        return [Job(s, batch, s.budgets[:1] if short else s.budgets) for s, batch in tiny]
    if short:
        return headlines
    # A model used later again is made again.
    others = [Job(shape, 1, shape.budgets[1:], unpruned=False) for shape in (LLAVA, NEXT)]
    order = [(LLAVA, 8), (LLAVA, 32), (NEXT, 8), (LLAVA_13B, 1)]
    order += [(LLAVA_13B, 8), (NEXT, 32), (LLAVA_13B, 32)]
    return [*headlines, *others, *(Job(shape, batch, shape.budgets) for shape, batch in order)]


def empty_row(job: Job, choice: Choice, mode: str, note: str) -> EndToEnd:
    """A row without a figure; the note says why."""
    return EndToEnd(
        model=job.shape.name,
        mode=mode,
        selector=choice.selector,
        batch=job.batch,
        budget=choice.budget,
        num_tokens=job.shape.num_tokens,
        stages={},
        ttft_s=None,
        ttft_p20_s=None,
        ttft_p80_s=None,
        rounds=0,
        decode_tokens_per_s=None,
        cache_bytes=None,
        pruner_added_s=None,
        note=note,
    )


def describe(row: EndToEnd) -> str:
    """A row as a line of the table."""
    head = f"{row.model} B={row.batch} {row.mode} {row.selector} {row.budget} of {row.num_tokens}"
    if row.ttft_s is None or row.decode_tokens_per_s is None or row.cache_bytes is None:
        return f"{head}: {row.note}"
    stages = ", ".join(f"{name} {value * 1e3:.3f}" for name, value in row.stages.items())
    added = row.pruner_added_s
    return (
        f"{head}: TTFT {row.ttft_s * 1e3:.3f} ms ({stages} ms), "
        f"{row.decode_tokens_per_s:.1f} tokens/s, cache {row.cache_bytes / 2**20:.1f} MiB"
        + ("" if added is None else f", the pruner adds {added * 1e3:.3f} ms")
        + (f"; {row.note}" if row.note else "")
    )
