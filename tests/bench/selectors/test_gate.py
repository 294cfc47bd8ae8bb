"""The gate of the selectors: each of its lines refuses once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.results import CheckResult
from bench.selectors import gate
from bench.selectors.gate import check_selector, quality
from bench.selectors.inputs import NAMES, PUBLISHED, Job, draw, selector_of
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, run_selector
from ocvtp_kernels.selectors.registry import make_selector
from tests.bench.selectors.cases import JOB, ONE, Change, Changed, set_id
from tests.bench.suites import CPU


def check(method: str, job: Job, selector: Any = None) -> CheckResult:
    return check_selector(method, selector or selector_of(method, job, CPU), job, CPU, 1)


def refusal(change: Change, method: str = "fastervlm", **options: Any) -> str:
    found = check(method, JOB, Changed(change, method, **options))
    assert not found.passed
    return found.note


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("job", [ONE, JOB])
def test_a_right_selector_passes(name: str, job: Job) -> None:
    found = check(name, job)
    assert found.passed, found.note


def another_choice(selected: Selected) -> Selected:
    ids = selected.ids.clone()
    ids[-1, 0] = next(n for n in range(64) if n not in ids[-1].tolist())
    return selected._replace(ids=ids.sort(dim=1).values)


def fails(selected: Selected) -> Selected:
    raise RuntimeError("no such kernel\nand more")


@pytest.mark.parametrize(
    ("change", "method", "note"),
    [
        (set_id(-1, -1), "fastervlm", "an image keeps 7 tokens, not 8"),
        (set_id(-1, 64), "fastervlm", "ids out of range"),
        (lambda s: set_id(0, int(s.ids[-1, 1]))(s), "fastervlm", "an image keeps a token twice"),
        (lambda s: s._replace(ids=s.ids.flip(1)), "fastervlm", "ids are not ascending"),
        (lambda s: s._replace(tokens=s.tokens[:, 1:]), "visionzip", "tokens have shape [2, 7, 48]"),
        (another_choice, "fastervlm", "1 ids of an image are not the reference's, which is no tie"),
        (fails, "fastervlm", "it fails: RuntimeError: no such kernel"),
    ],
)
def test_what_is_wrong_is_refused_and_named(change: Change, method: str, note: str) -> None:
    assert refusal(change, method) == note


def test_places_that_others_take_are_refused() -> None:
    note = refusal(lambda selected: selected, "visionzip", as_published=True)
    assert note == "ids have shape [2, 7], not [2, 8]"


@pytest.mark.parametrize("value", [1.001, float("nan")])
@pytest.mark.parametrize(("rows", "method"), [("tokens", "prumerge"), ("extra", "trim")])
def test_wrong_rows_are_refused(rows: str, method: str, value: float) -> None:
    def change(selected: Selected) -> Selected:
        return selected._replace(**{rows: getattr(selected, rows) * value})

    assert refusal(change, method).startswith("a row is off the reference's by ")


def other_ids(ids: list[int], rows: Tensor | None) -> Any:
    return sorted({*ids[1:], next(n for n in range(64) if n not in ids)}), rows


def other_rows(ids: list[int], rows: Tensor | None) -> Any:
    return ids, None if rows is None else rows * 1.01


@pytest.mark.parametrize(
    ("method", "other", "note"),
    [(name, other_ids, "1 ids of an image are not the published loops',") for name in PUBLISHED]
    + [("vlm-pruner", other_rows, "a row is off the published loops' by ")],
)
def test_other_results_than_the_published_loops_are_refused(
    method: str, other: Callable[..., Any], note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = gate.run_published
    monkeypatch.setattr(gate, "run_published", lambda *given: other(*honest(*given)))
    found = check(method, ONE)
    assert not found.passed and found.note.startswith(note)
    # It is held against them on one image alone.
    assert check(method, JOB).passed


def test_where_the_published_loops_fall_short_ours_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(name: str, inputs: SelectorInputs, budget: int) -> tuple[list[int], Tensor]:
        order = run_selector(make_selector(name), inputs, budget).order
        assert order is not None
        return sorted(order[0, :5].tolist()), inputs.final_tokens[0, :5]

    monkeypatch.setattr(gate, "run_published", short)
    assert check("vlm-pruner", ONE).passed


def test_who_returns_an_old_answer_is_refused() -> None:
    first: list[Selected] = []

    def lazy(selected: Selected) -> Selected:
        first.append(selected._replace(ids=selected.ids.clone()))
        return first[0]._replace(ids=first[0].ids.clone())

    assert "not the reference's" in refusal(lazy)


def test_a_tie_that_rounding_decides_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    # The last place in the budget is between two tokens of nearly equal attention.
    attention = torch.linspace(1, 2, 64).repeat(2, 1)
    attention[:, 55] = attention[:, 56].nextafter(torch.zeros(2))
    tied = draw(JOB, 1, CPU)._replace(cls_attention=attention)
    monkeypatch.setattr(gate, "draw", lambda *_: tied)

    def change(selected: Selected) -> Selected:
        return selected._replace(ids=torch.where(selected.ids == 56, 55, selected.ids))

    found = check("fastervlm", JOB, Changed(change))
    assert found == CheckResult(True, "ids exact but for 2 that rounding decides")

    def beyond(selected: Selected) -> Selected:
        return selected._replace(ids=torch.where(selected.ids < 59, selected.ids - 8, selected.ids))

    assert "which is no tie" in refusal(beyond)


def test_quality_of_what_cannot_be_told() -> None:
    inputs = draw(JOB, 1, CPU)
    assert quality(Changed(set_id(0, 64)), inputs, 8) is None
    short = quality(Changed(set_id(-1, -1)), inputs, 8)
    whole = quality(make_selector("fastervlm"), inputs, 8)
    assert short is not None and whole is not None
    assert (short.exact, short.duplicates, whole.exact) == (False, 0, True)
    assert short.coverage <= whole.coverage
