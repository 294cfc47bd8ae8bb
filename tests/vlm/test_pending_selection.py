"""A selection started inside the encoder: what runs early, and on which stream."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels.selectors.at_random import RandomSelector
from ocvtp_kernels.selectors.interface import SelectorInputs, run_selector, start_selector
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from ocvtp_kernels.vlm import pending_selection as module
from ocvtp_kernels.vlm.handle import Handle, Options
from ocvtp_kernels.vlm.pending_selection import PendingSelection
from tests.cases import random_pruner, random_tokens

CPU = torch.device("cpu")


class Recorder:
    """In place of CUDA streams: records in which order they wait and work."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def stream(self, name: str) -> Any:
        recorder = self

        class Stream:
            cuda_stream = hash(name)

            def __str__(self) -> str:
                return name

            def wait_stream(self, other: Any) -> None:
                recorder.notes.append(f"{self} waits for {other}")

        return Stream()

    @contextmanager
    def use(self, stream: Any) -> Any:
        self.notes.append(f"on {stream}")
        yield
        self.notes.append(f"off {stream}")


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens on streams of a GPU that is not there."""
    recorder = Recorder()
    main, side = recorder.stream("main"), recorder.stream("side")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: main)
    monkeypatch.setattr(torch.cuda, "stream", recorder.use)
    monkeypatch.setattr(module, "_side_stream", lambda _device, _current: side)
    return recorder.notes


def note(streams: list[str]) -> Any:
    """A selector that records when it starts and finishes."""

    class Selector:
        wants = frozenset({"importance"})

        def begin(self, reference_tokens: Tensor, budget: int) -> Any:
            streams.append("begin")

            def finish(_inputs: SelectorInputs | None) -> Tensor:
                streams.append("finish")
                return torch.arange(budget).repeat(len(reference_tokens), 1)

            return finish

        def __call__(self, inputs: SelectorInputs, budget: int) -> Tensor:
            raise AssertionError("started, so not run again")

    return Selector()


def test_the_selector_runs_on_a_side_stream_and_is_waited_for_once(streams: list[str]) -> None:
    pending = PendingSelection(note(streams), Handle().begin(), torch.device("cuda"), Options())
    tokens = random_tokens(2, 5, 3)
    pending.start(tokens, 2)
    pending.start(tokens, 3)
    streams.append("encoder goes on")
    assert pending.finish(SelectorInputs(tokens, tokens), 0).ids.shape == (2, 2)
    assert pending.finish(SelectorInputs(tokens, tokens), 1).ids.shape == (2, 3)
    work = ["side waits for main", "on side", "begin", "off side"]
    join = ["encoder goes on", "main waits for side", "finish", "finish"]
    assert streams == [*work, *work, *join]


@pytest.mark.parametrize("options", [Options(overlap=False), Options(timed=True)])
def test_without_overlap_there_is_one_stream(streams: list[str], options: Options) -> None:
    pending = PendingSelection(note(streams), Handle().begin(), torch.device("cuda"), options)
    tokens = random_tokens(1, 5, 3)
    pending.start(tokens, 2)
    pending.finish(SelectorInputs(tokens, tokens))
    assert streams == ["begin", "finish"]


def test_a_selector_of_reference_tokens_runs_before_there_are_final_tokens() -> None:
    selector = RandomSelector()
    tokens = random_tokens(3, 9, 4)
    pending = PendingSelection(selector, Handle().begin(), CPU, Options())
    pending.start(tokens, 4)
    assert torch.equal(
        pending.finish().ids, run_selector(selector, SelectorInputs(tokens, tokens), 4).ids
    )


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("has_importance", [False, True])
def test_a_pruner_started_early_keeps_what_it_keeps_late(
    frozen: bool, has_importance: bool
) -> None:
    pruner = random_pruner()
    selector = PrunerSelector(pruner.freeze() if frozen else pruner)
    tokens = random_tokens(3, 33, 12, outliers=True)
    importance = random_tokens(3, 33, seed=1) if has_importance else None
    inputs = SelectorInputs(tokens, tokens, importance)
    for budget in (1, 7, 33):
        early = start_selector(selector, tokens, budget)(inputs)
        assert torch.equal(early.ids, run_selector(selector, inputs, budget).ids)


def test_a_plain_selector_runs_when_there_are_final_tokens() -> None:
    class LastTokens:
        def __call__(self, inputs: SelectorInputs, budget: int) -> Tensor:
            num_tokens = inputs.final_tokens.shape[1]
            return torch.arange(num_tokens - budget, num_tokens)[None]

    reference, final = random_tokens(1, 6, 3), random_tokens(1, 6, 4)
    assert start_selector(LastTokens(), reference, 2)(
        SelectorInputs(reference, final)
    ).ids.tolist() == [[4, 5]]


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.zeros(1, 2), TypeError, "expected ids of dtype torch.int64, got torch.float32"),
        (torch.zeros(1, 3, dtype=torch.int64), ValueError, r"expected ids of shape \(1, 2\)"),
    ],
)
def test_what_a_started_selection_returns_is_checked(
    ids: Tensor, error: type[Exception], message: str
) -> None:
    class Wrong:
        wants = frozenset({"importance"})

        def begin(self, _tokens: Tensor, _budget: int) -> Any:
            return lambda _inputs: ids

        def __call__(self, inputs: SelectorInputs, budget: int) -> Tensor:
            return ids

    tokens = random_tokens(1, 5, 3)
    with pytest.raises(error, match=message):
        start_selector(Wrong(), tokens, 2)(SelectorInputs(tokens, tokens))


def test_too_large_a_budget_is_named() -> None:
    with pytest.raises(ValueError, match="budget: expected 1 to 5"):
        start_selector(PrunerSelector(random_pruner()), random_tokens(1, 5, 12), 6)
