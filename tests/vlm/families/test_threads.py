"""Several threads, streams and questions in the middle: every call is as alone."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("tokenizers")

from ocvtp_kernels import attach, make_selector
from ocvtp_kernels.selectors.interface import SelectorInputs
from tests.vlm.families import (
    BUDGET,
    NEW,
    ByNorm,
    Entry,
    answers,
    generate,
    process,
)
from tests.vlm.families._suite import (
    SELECTORS,
    TEXTS,
    describe,
    ids_of,
    layers_of,
    run_in_threads,
    skip_without_grid,
)

pytestmark = pytest.mark.usefixtures("one_thread")


class FailsInThreads(ByNorm):
    """Fails in the middle of the encoder, in threads that are called so."""

    def __call__(self, inputs: SelectorInputs, budget: int) -> Tensor:
        if threading.current_thread().name == "failing":
            raise ArithmeticError
        return super().__call__(inputs, budget)


IN_THREADS = SELECTORS | {
    "failing": FailsInThreads,
    "in the decoder": lambda: make_selector("vlm-pruner"),
}


def check_threads(entry: Entry, selector: str, seconds: float) -> None:
    if selector == "in the decoder":
        skip_without_grid(entry)
    model, processor = entry.make_model(), entry.make_processor()

    def say(batch: dict[str, Any]) -> Any:
        return generate(entry, model, batch, max_new_tokens=2)

    own = process(processor, entry.rows(TEXTS))
    expected = say(own)
    before = describe(model, processor)
    handle = attach(model, processor, IN_THREADS[selector](), BUDGET, timed=True)
    texts = [TEXTS[:1], TEXTS[:2], TEXTS[1:2], TEXTS[2:]]
    batches = [process(processor, entry.rows(some, index)) for index, some in enumerate(texts)]
    alone, kept = [], []
    for batch in batches:
        alone.append(say(batch))
        kept.append(ids_of(handle))
    end = time.monotonic() + seconds
    wrong, calls = [], [0] * len(batches)

    def ask(index: int) -> None:
        torch.set_num_threads(1)
        while calls[index] < 2 or time.monotonic() < end:
            calls[index] += 1
            if threading.current_thread().name == "failing":
                with pytest.raises(ArithmeticError):
                    say(batches[index])
            elif not torch.equal(say(batches[index]), alone[index]):
                wrong.append(index)

    works = [lambda index=index: ask(index) for index in range(len(batches))]
    run_in_threads(*works, names=["failing"] if selector == "failing" else [])
    assert not wrong, f"{len(wrong)} wrong answers of {sum(calls)}"
    assert ids_of(handle) in kept
    assert handle.last is not None and all(0 < each < 60 for each in handle.last.times.values())
    handle.remove()
    assert describe(model, processor) == before
    assert torch.equal(say(own), expected)


@pytest.mark.parametrize("selector", ["pruner", "pruner of reference tokens", "failing"])
def test_every_thread_gets_the_answer_that_it_gets_alone(
    entry: Entry, selector: str, quick_switches: None
) -> None:
    check_threads(entry, selector, 0.25)


@pytest.mark.parametrize("selector", ["pruner", "reference tokens"])
def test_the_first_calls_of_several_threads(
    entry: Entry, selector: str, quick_switches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = nn.Module.register_forward_hook

    def register_slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.002)
        return stock(*args, **kwargs)

    model, processor = entry.make_model(), entry.make_processor()
    rows = [entry.rows(TEXTS[:1], index) for index in range(4)]
    with attach(model, processor, SELECTORS[selector](), BUDGET):
        batches = [process(processor, some) for some in rows]
        expected = [generate(entry, model, batch, max_new_tokens=1) for batch in batches]
    # A thread that has to set something up first gives the others time to come.
    monkeypatch.setattr(nn.Module, "register_forward_hook", register_slowly)
    for _ in range(3):
        barrier = threading.Barrier(4)
        found: dict[int, Tensor] = {}

        def ask(index: int, barrier: Any = barrier, found: Any = found) -> None:
            torch.set_num_threads(1)
            barrier.wait()
            found[index] = generate(entry, model, batches[index], max_new_tokens=1)

        with attach(model, processor, SELECTORS[selector](), BUDGET):
            run_in_threads(*(functools.partial(ask, index) for index in range(4)))
        assert all(torch.equal(found[index], expected[index]) for index in range(4))


def test_models_in_threads_keep_their_own_budgets(entry: Entry, quick_switches: None) -> None:
    pairs = [(entry.make_model(), entry.make_processor()) for _ in range(2)]
    handles = [attach(*pair, ByNorm(), BUDGET + index) for index, pair in enumerate(pairs)]
    rows, found = entry.rows(["{} what is this ?"]), []
    alone = [answers(entry, *pair, rows) for pair in pairs]

    def ask(index: int) -> None:
        torch.set_num_threads(1)
        for _ in range(4):
            found.append(torch.equal(answers(entry, *pairs[index], rows), alone[index]))
            [ids] = ids_of(handles[index])
            found.append(len(ids) == BUDGET + index)

    run_in_threads(lambda: ask(0), lambda: ask(1))
    assert all(found)


@pytest.mark.slow
@pytest.mark.parametrize("selector", IN_THREADS)
def test_threads_for_longer(
    entry: Entry, selector: str, quick_switches: None, request: pytest.FixtureRequest
) -> None:
    check_threads(entry, selector, request.config.getoption("--seconds") / len(IN_THREADS))


class Lockstep:
    """A streamer that waits at every token until the other stream is there too."""

    def __init__(self, barrier: threading.Barrier, stop_at: int = -1) -> None:
        self.barrier, self.stop_at = barrier, stop_at
        self.count = 0

    def put(self, _tokens: Tensor) -> None:
        self.barrier.wait()
        self.count += 1
        if self.count == self.stop_at:
            raise InterruptedError

    def end(self) -> None:
        pass


def test_two_streams_take_turns(entry: Entry, made: Any) -> None:
    model, processor = made
    with attach(model, processor, ByNorm(), BUDGET):
        batches = [process(processor, entry.rows(TEXTS[:1], index)) for index in range(2)]
        alone = [generate(entry, model, batch) for batch in batches]
        barrier = threading.Barrier(2, timeout=20)
        found: dict[int, Tensor] = {}

        def stream(index: int) -> None:
            torch.set_num_threads(1)
            try:
                found[index] = generate(entry, model, batches[index], streamer=Lockstep(barrier))
            except BaseException:
                barrier.abort()
                raise

        run_in_threads(lambda: stream(0), lambda: stream(1))
    assert all(torch.equal(found[index], alone[index]) for index in range(2))


def test_a_stream_that_is_left_in_the_middle(entry: Entry, made: Any) -> None:
    model, processor = made
    with attach(model, processor, ByNorm(), BUDGET):
        batch = process(processor, entry.rows(TEXTS[:1]))
        expected = generate(entry, model, batch)
        with pytest.raises(InterruptedError):
            generate(entry, model, batch, streamer=Lockstep(threading.Barrier(1), stop_at=3))
        assert torch.equal(generate(entry, model, batch), expected)


class Asking(Lockstep):
    """A streamer that asks the same model something else in the middle of an answer."""

    def __init__(self, ask: Callable[[], None]) -> None:
        super().__init__(threading.Barrier(1))
        self.ask = ask

    def put(self, tokens: Tensor) -> None:
        super().put(tokens)
        self.ask()


def test_a_model_is_asked_in_the_middle_of_an_answer(entry: Entry, made: Any) -> None:
    model, processor = made
    with attach(model, processor, ByNorm(), BUDGET):
        batch, other = (process(processor, entry.rows(TEXTS[:1], index)) for index in range(2))
        expected = [generate(entry, model, each) for each in (batch, other)]
        found: list[Tensor] = []

        def ask_both() -> None:
            streamer = Asking(lambda: found.append(generate(entry, model, other)))
            found.append(generate(entry, model, batch, streamer=streamer))

        # In a thread, which a lock would hold up for good.
        thread = threading.Thread(target=ask_both, daemon=True)
        thread.start()
        thread.join(20)
    assert len(found) == NEW + 2
    assert torch.equal(found.pop(), expected[0])
    assert all(torch.equal(tokens, expected[1]) for tokens in found)


@pytest.mark.parametrize("where", ["selector", "last layer", "projector"])
def test_all_is_as_before_after_an_error(entry: Entry, made: Any, where: str) -> None:
    model, processor = made
    rows, failing = entry.rows(TEXTS), [False]

    class Failing(ByNorm):
        def __call__(self, inputs: SelectorInputs, budget: int) -> Tensor:
            if where == "selector" and failing[0]:
                raise ArithmeticError
            return super().__call__(inputs, budget)

    def fail(*_args: Any) -> None:
        if failing[0]:
            raise ArithmeticError

    parts = {"projector": model.get_submodule(entry.projector)}
    parts["last layer"] = layers_of(entry, model)[-2].mlp
    hook = parts[where].register_forward_pre_hook(fail) if where in parts else None
    with attach(model, processor, Failing(), BUDGET):
        expected = answers(entry, model, processor, rows)
        failing[0] = True
        for _ in range(2):
            with pytest.raises(ArithmeticError):
                answers(entry, model, processor, rows)
        failing[0] = False
        assert torch.equal(answers(entry, model, processor, rows), expected)
    if hook is not None:
        hook.remove()
