"""The gate of the selectors: each of its lines refuses once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench import selectors_gate
from bench.selectors_gate import judge, quality
from bench.selectors_inputs import NAMES, PUBLISHED, Job, draw, selector_of
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, run_selector
from ocvtp_kernels.selectors.registry import make_selector
from tests.bench.selector_cases import CPU, JOB, ONE, Change, Changed, set_id


def verdict(change: Change, method: str = "fastervlm", job: Job = JOB, **options: Any) -> str:
    found = judge(method, Changed(change, method, **options), job, CPU, 1)
    assert not found.passed
    return found.note


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("job", [ONE, JOB])
def test_a_right_selector_passes(name: str, job: Job) -> None:
    found = judge(name, selector_of(name, job, CPU), job, CPU, 1)
    assert found.passed, found.note


def test_too_few_tokens_are_refused() -> None:
    assert verdict(set_id(-1, -1)) == "an image keeps 7 tokens, not 8"


def test_ids_out_of_range_are_refused() -> None:
    assert verdict(set_id(-1, 64)) == "ids out of range"


def test_a_token_kept_twice_is_refused() -> None:
    def change(selected: Selected) -> Selected:
        return set_id(0, int(selected.ids[-1, 1]))(selected)

    assert verdict(change) == "an image keeps a token twice"


def test_ids_in_another_order_are_refused() -> None:
    def change(selected: Selected) -> Selected:
        return selected._replace(ids=selected.ids.flip(1))

    assert verdict(change) == "ids are not ascending"


def test_places_that_others_take_are_refused() -> None:
    note = verdict(lambda selected: selected, "visionzip", as_published=True)
    assert note == "ids have shape [2, 7], not [2, 8]"


def test_rows_of_another_number_are_refused() -> None:
    def change(selected: Selected) -> Selected:
        assert selected.tokens is not None
        return selected._replace(tokens=selected.tokens[:, 1:])

    assert verdict(change, "visionzip") == "tokens have shape [2, 7, 48]"


def test_ids_of_another_choice_are_refused() -> None:
    def change(selected: Selected) -> Selected:
        others = [n for n in range(64) if n not in selected.ids[-1].tolist()]
        ids = selected.ids.clone()
        ids[-1, 0] = others[0]
        return selected._replace(ids=ids.sort(dim=1).values)

    assert verdict(change) == "1 ids of an image are not the reference's, which is no tie"


@pytest.mark.parametrize("value", [1.001, float("nan")])
def test_wrong_rows_are_refused(value: float) -> None:
    def change(selected: Selected) -> Selected:
        assert selected.tokens is not None
        return selected._replace(tokens=selected.tokens * value)

    assert verdict(change, "prumerge").startswith("a row is off the reference's by ")

    def change_extra(selected: Selected) -> Selected:
        assert selected.extra is not None
        return selected._replace(extra=selected.extra * value)

    assert verdict(change_extra, "trim").startswith("a row is off the reference's by ")


def test_a_failure_is_a_refusal() -> None:
    def change(selected: Selected) -> Selected:
        raise RuntimeError("no such kernel\nand more")

    assert verdict(change) == "it fails: RuntimeError: no such kernel"


@pytest.mark.parametrize("method", PUBLISHED)
def test_other_ids_than_the_published_loops_are_refused(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = selectors_gate.run_published

    def other(*arguments: Any) -> tuple[list[int], Tensor | None]:
        ids, rows = honest(*arguments)
        return sorted({*ids[1:], next(n for n in range(64) if n not in ids)}), rows

    selector = make_selector(method)
    monkeypatch.setattr(selectors_gate, "run_published", other)
    found = judge(method, selector, ONE, CPU, 1)
    assert not found.passed
    assert found.note == "1 ids of an image are not the published loops', which is no tie"
    # It is held against them on one image alone.
    assert judge(method, selector, JOB, CPU, 1).passed


def test_other_rows_than_the_published_loops_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = selectors_gate.run_published

    def other(*arguments: Any) -> tuple[list[int], Tensor | None]:
        ids, rows = honest(*arguments)
        return ids, None if rows is None else rows * 1.01

    monkeypatch.setattr(selectors_gate, "run_published", other)
    found = judge("vlm-pruner", make_selector("vlm-pruner"), ONE, CPU, 1)
    assert not found.passed and found.note.startswith("a row is off the published loops' by ")


def test_where_the_published_loops_fall_short_ours_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(name: str, inputs: SelectorInputs, budget: int) -> tuple[list[int], Tensor | None]:
        order = run_selector(make_selector(name), inputs, budget).order
        assert order is not None
        return sorted(order[0, :5].tolist()), inputs.final_tokens[0, :5]

    monkeypatch.setattr(selectors_gate, "run_published", short)
    assert judge("vlm-pruner", make_selector("vlm-pruner"), ONE, CPU, 1).passed


def test_who_returns_an_old_answer_is_refused() -> None:
    class Lazy(Changed):
        kept: Selected | None = None

        def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
            if self.kept is None:
                self.kept = run_selector(self.inner, inputs, budget)
            return self.kept._replace(ids=self.kept.ids.clone())

    found = judge("fastervlm", Lazy(lambda selected: selected), JOB, CPU, 1)
    assert not found.passed and "not the reference's" in found.note


def test_a_tie_that_rounding_decides_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = draw(JOB, 1, CPU)

    def tied(*_: Any) -> SelectorInputs:
        # The last place in the budget is between two tokens of nearly equal attention.
        assert honest.cls_attention is not None
        attention = torch.linspace(1, 2, 64).repeat(2, 1)
        attention[:, 55] = attention[:, 56].nextafter(torch.zeros(2))
        return honest._replace(cls_attention=attention)

    def change(selected: Selected) -> Selected:
        return selected._replace(ids=torch.where(selected.ids == 56, 55, selected.ids))

    monkeypatch.setattr(selectors_gate, "draw", tied)
    found = judge("fastervlm", Changed(change), JOB, CPU, 1)
    assert found.passed and found.note == "ids exact but for 2 that rounding decides"

    def beyond(selected: Selected) -> Selected:
        return selected._replace(ids=torch.where(selected.ids < 59, selected.ids - 8, selected.ids))

    assert "which is no tie" in verdict(beyond)


def test_quality_of_what_cannot_be_told() -> None:
    inputs = draw(JOB, 1, CPU)
    assert quality(Changed(set_id(0, 64)), inputs, 8) is None
    short = quality(Changed(set_id(-1, -1)), inputs, 8)
    whole = quality(make_selector("fastervlm"), inputs, 8)
    assert short is not None and whole is not None
    assert (short.exact, short.duplicates, whole.exact) == (False, 0, True)
    assert short.coverage <= whole.coverage
