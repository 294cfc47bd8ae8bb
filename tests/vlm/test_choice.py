"""A choice begun inside the encoder: what it does early, and on which stream."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels.selectors.at_random import RandomSelector
from ocvtp_kernels.selectors.interface import Evidence, ask, begin
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from ocvtp_kernels.vlm import choice as module
from ocvtp_kernels.vlm.choice import Choice
from ocvtp_kernels.vlm.handle import Handle, Options
from tests.cases import random_pruner, random_tokens

CPU = torch.device("cpu")


class Recorder:
    """Stands in for CUDA streams, and notes in which order they wait and work."""

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
    main, beside = recorder.stream("main"), recorder.stream("beside")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: main)
    monkeypatch.setattr(torch.cuda, "stream", recorder.use)
    monkeypatch.setattr(module, "_stream_beside", lambda _device, _current: beside)
    return recorder.notes


def note(streams: list[str]) -> Any:
    """A selector that notes when it begins and finishes."""

    class Selector:
        wants = frozenset({"importance"})

        def begin(self, reference_tokens: Tensor, budget: int) -> Any:
            streams.append("begin")

            def finish(_evidence: Evidence | None) -> Tensor:
                streams.append("finish")
                return torch.arange(budget).repeat(len(reference_tokens), 1)

            return finish

        def __call__(self, evidence: Evidence, budget: int) -> Tensor:
            raise AssertionError("begun, so not asked again")

    return Selector()


def test_the_selector_works_beside_the_encoder_and_is_waited_for_once(streams: list[str]) -> None:
    choice = Choice(note(streams), Handle(), torch.device("cuda"), Options())
    tokens = random_tokens(2, 5, 3)
    choice.begin(tokens, 2)
    choice.begin(tokens, 3)
    streams.append("encoder goes on")
    assert choice.finish(Evidence(tokens, tokens), 0).ids.shape == (2, 2)
    assert choice.finish(Evidence(tokens, tokens), 1).ids.shape == (2, 3)
    work = ["beside waits for main", "on beside", "begin", "off beside"]
    join = ["encoder goes on", "main waits for beside", "finish", "finish"]
    assert streams == [*work, *work, *join]


@pytest.mark.parametrize("options", [Options(overlap=False), Options(timed=True)])
def test_without_overlap_there_is_one_stream(streams: list[str], options: Options) -> None:
    choice = Choice(note(streams), Handle(), torch.device("cuda"), options)
    tokens = random_tokens(1, 5, 3)
    choice.begin(tokens, 2)
    choice.finish(Evidence(tokens, tokens))
    assert streams == ["begin", "finish"]


def test_an_early_selector_chooses_before_there_is_evidence() -> None:
    selector = RandomSelector()
    tokens = random_tokens(3, 9, 4)
    choice = Choice(selector, Handle(), CPU, Options())
    choice.begin(tokens, 4)
    assert torch.equal(choice.finish().ids, ask(selector, Evidence(tokens, tokens), 4).ids)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_a_pruner_begun_early_keeps_what_it_keeps_late(frozen: bool, known: bool) -> None:
    pruner = random_pruner()
    selector = PrunerSelector(pruner.freeze() if frozen else pruner)
    tokens = random_tokens(3, 33, 12, outliers=True)
    importance = random_tokens(3, 33, seed=1) if known else None
    evidence = Evidence(tokens, tokens, importance)
    for budget in (1, 7, 33):
        early = begin(selector, tokens, budget)(evidence)
        assert torch.equal(early.ids, ask(selector, evidence, budget).ids)


def test_a_plain_selector_is_asked_when_there_is_evidence() -> None:
    class Last:
        def __call__(self, evidence: Evidence, budget: int) -> Tensor:
            num_tokens = evidence.final_tokens.shape[1]
            return torch.arange(num_tokens - budget, num_tokens)[None]

    reference, final = random_tokens(1, 6, 3), random_tokens(1, 6, 4)
    assert begin(Last(), reference, 2)(Evidence(reference, final)).ids.tolist() == [[4, 5]]


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.zeros(1, 2), TypeError, "expected ids of dtype torch.int64, got torch.float32"),
        (torch.zeros(1, 3, dtype=torch.int64), ValueError, r"expected ids of shape \(1, 2\)"),
    ],
)
def test_what_a_begun_choice_gives_is_looked_at(
    ids: Tensor, error: type[Exception], message: str
) -> None:
    class Wrong:
        wants = frozenset({"importance"})

        def begin(self, _tokens: Tensor, _budget: int) -> Any:
            return lambda _evidence: ids

        def __call__(self, evidence: Evidence, budget: int) -> Tensor:
            return ids

    tokens = random_tokens(1, 5, 3)
    with pytest.raises(error, match=message):
        begin(Wrong(), tokens, 2)(Evidence(tokens, tokens))


def test_too_large_a_budget_is_named() -> None:
    with pytest.raises(ValueError, match="budget: expected 1 to 5"):
        begin(PrunerSelector(random_pruner()), random_tokens(1, 5, 12), 6)
