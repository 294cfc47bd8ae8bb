"""Tiny images for the table of selectors, and selectors whose answers are changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.selectors.inputs import Job
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, run_selector
from ocvtp_kernels.selectors.registry import make_selector

JOB = Job(2, 8, 8, 48, 4, 24, 32)
ONE = Job(1, 8, 8, 48, 4, 24, 32)
Change = Callable[[Selected], Selected]


class Changed:
    """FasterVLM, or another method, its answer changed afterwards."""

    def __init__(self, change: Change, method: str = "fastervlm", **options: Any) -> None:
        self.inner, self.change = make_selector(method, **options), change
        self.needs = self.inner.needs  # type: ignore[attr-defined]

    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        return self.change(run_selector(self.inner, inputs, budget))


def set_id(place: int, value: int) -> Change:
    def change(selected: Selected) -> Selected:
        ids = selected.ids.clone()
        ids[-1, place] = value
        return selected._replace(ids=ids)

    return change
