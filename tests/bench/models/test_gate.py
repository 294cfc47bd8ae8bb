"""The gate of whole models lets the right ones through, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from bench.models import calls
from bench.models.calls import MODES, Static
from bench.models.gate import why_model_is_wrong, why_wrong
from bench.models.llava import TINY, TINY_NEXT, Choice, Vlm

PRUNED = Choice("ocvtp", 8)


@pytest.fixture(scope="module", params=[TINY, TINY_NEXT], ids=["llava", "next"])
def vlm(request: pytest.FixtureRequest) -> Vlm:
    return Vlm(request.param, torch.device("cpu"))


@pytest.fixture(autouse=True)
def without_gradients(one_thread: None) -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("choice", [None, PRUNED, Choice("random", 16)], ids=str)
def test_a_right_model_is_believed(vlm: Vlm, mode: str, choice: Choice | None) -> None:
    assert why_model_is_wrong(vlm) is None
    one = MODES[mode](vlm, choice or Choice("unpruned", vlm.shape.num_tokens), 2)
    assert why_wrong(one, (1, 2)) is None
    # What is timed leaves the run as it was.
    one.prefill()
    one.decode()
    one.first()
    one.decode()
    assert why_wrong(one, (3,)) is None


def change_result(owner: Any, name: str, change: Any) -> None:
    method = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: change(method(*args, **kwargs)))


def change_features(view: Any, change: Any) -> None:
    def changed(output: Any) -> Any:
        output.pooler_output = [change(tokens) for tokens in output.pooler_output]
        return output

    change_result(view.model, "get_image_features", changed)


def change_ids(one: Any, change: Any) -> None:
    begin = one.handle.begin

    def begin_changed() -> Any:
        record = begin()
        finish = record.finish
        record.finish = lambda ids, **more: finish([change(each) for each in ids], **more)
        return record

    one.handle.begin = begin_changed


def forget_the_prompt(one: Any) -> None:
    one.step = lambda token: one.view(input_ids=token).logits[:, -1]


def take_an_old_prefill(one: Any) -> None:
    one.first = lambda: (one.embed(), one.prefill())[1]


@pytest.mark.parametrize(
    ("breakage", "mode", "reason"),
    [
        (lambda one: change_result(one, "first", lambda x: x * torch.nan), "eager", "not finite"),
        (lambda one: change_features(one.view, lambda t: t.flip(0)), "eager", "a kept token is"),
        (lambda one: change_ids(one, lambda ids: ids.flip(0)), "eager", "not ascending"),
        (lambda one: change_ids(one, lambda ids: ids[1:]), "eager", "ids have shape"),
        (forget_the_prompt, "eager", "decoded from the cache is off by"),
        (forget_the_prompt, "static", "decoded from the cache is off by"),
        (take_an_old_prefill, "static", "the first logits are off by"),
        (lambda one: one._mask.fill_(True), "static", "the first logits are off by"),
    ],
)
def test_a_wrong_run_is_refused(vlm: Vlm, breakage: Any, mode: Any, reason: str) -> None:
    one = MODES[mode](vlm, PRUNED, 1)
    breakage(one)
    assert reason in (why_wrong(one, (1,)) or "")


@pytest.mark.parametrize(
    ("budget", "pixels", "reason"),
    [
        (8, None, "placeholders"),
        (None, torch.zeros, "two images give the same logits"),
        (None, None, "not the unattached model's"),
    ],
)
def test_a_wrong_model_is_refused(
    vlm: Vlm, monkeypatch: pytest.MonkeyPatch, budget: int | None, pixels: Any, reason: str
) -> None:
    attach = calls.attach

    def wrong(view: Any, processor: Any, selector: Any, given: int, **options: Any) -> Any:
        handle = attach(view, processor, selector, budget or given, **options)
        if not budget and not pixels:
            change_features(view, lambda tokens: tokens * (1 + 1e-6))
        return handle

    if pixels is not None:
        shape = vlm.pixels(1, 0).shape
        monkeypatch.setattr(Vlm, "pixels", lambda *_: pixels(shape))
    monkeypatch.setattr(calls, "attach", wrong)
    assert reason in (why_model_is_wrong(vlm) or "")


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU whose CUDA graphs replay nothing."""
    monkeypatch.setattr(calls, "is_captured_on", lambda _: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: nullcontext())
    for name in ("synchronize", "current_stream", "get_sync_debug_mode"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda _: None)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_graph_that_computes_nothing_anew_is_refused(vlm: Vlm) -> None:
    one = Static(vlm, PRUNED, 1)
    assert one.note == ""
    assert "the first logits are off by" in (why_wrong(one, (1,)) or "")


@pytest.mark.usefixtures("as_on_a_gpu")
def test_what_waits_for_the_device_is_no_graph_and_says_so(
    vlm: Vlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits(mode: str | None) -> None:
        if mode == "error":
            raise RuntimeError("called a synchronizing operation")

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", waits)
    one = Static(vlm, PRUNED, 1)
    for part in ("a decoding step", "the prefill", "the encoder"):
        assert f"{part} is no CUDA graph: called a synchronizing" in one.note
    assert "the first token" not in one.note
    assert why_wrong(one, (1, 2)) is None
