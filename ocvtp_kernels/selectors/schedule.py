"""Schedules: before which decoder layers tokens are dropped, and how many are left."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ocvtp_kernels.checks import require_at_least, whole_number
from ocvtp_kernels.selectors.interface import Selector, Stage

# Pairs of a decoder layer, from 0, before which tokens are dropped, and the number of those left.
Schedule = Sequence[tuple[int, int]]
LEAST_DEPTH = 4  # decoder layers from which on a quarter of them is one


def read_schedule(schedule: Schedule | None) -> tuple[tuple[int, int], ...] | None:
    """A user's schedule, checked; None where there is none.

    Raises:
        ValueError, TypeError: it is no sequence of pairs of whole numbers from 1 on, of rising
            layers, and counts of which none is above the one before it.
    """
    if schedule is None:
        return None
    if not _is_sequence(schedule) or not all(_is_pair(step) for step in schedule):
        raise TypeError(f"schedule: expected pairs of a layer and a count, got {schedule!r}")
    if not schedule:
        raise ValueError("schedule: expected at least one pair of a layer and a count, got none")
    steps = tuple(
        (whole_number("schedule", layer, 1), whole_number("schedule", count, 1))
        for layer, count in schedule
    )
    layers, counts = [layer for layer, _ in steps], [count for _, count in steps]
    if layers != sorted(set(layers)):
        raise ValueError(f"schedule: expected rising layers, got {layers}")
    if counts != sorted(counts, reverse=True):
        raise ValueError(f"schedule: expected no count above the one before it, got {counts}")
    return steps


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_pair(value: Any) -> bool:
    return _is_sequence(value) and len(value) == 2


def pyramid(budget: int, depth: int) -> tuple[tuple[int, int], ...]:
    """Four, two and one times the budget at a quarter, a half and three quarters of the layers.

    Args:
        budget: at least 1.
        depth: decoder layers.

    Raises:
        ValueError: there are fewer than `LEAST_DEPTH` layers.
    """
    require_at_least("budget", budget, 1)
    if depth < LEAST_DEPTH:
        raise ValueError(
            f"schedule: expected one for a decoder of {depth} layers, as quarters of fewer than "
            f"{LEAST_DEPTH} are no layers; got None"
        )
    return (depth // 4, 4 * budget), (depth // 2, 2 * budget), (3 * depth // 4, budget)


def stages_by(
    selector: Selector, schedule: tuple[tuple[int, int], ...] | None, budget: int, depth: int
) -> tuple[Stage, ...]:
    """Stages that keep a schedule's counts, or what there is if that is less.

    Args:
        schedule: as of `read_schedule`; `pyramid` if None.
        budget, depth: as of `pyramid`.
    """
    steps = pyramid(budget, depth) if schedule is None else schedule
    return tuple(Stage(layer, partial(min, count), selector) for layer, count in steps)
