"""Whole models on the CPU: rows, refusals, memory that does not suffice."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from bench.models import calls, llava, run
from bench.models.calls import MODES, NEW_TOKENS, Static
from bench.models.llava import TEXT_TOKENS, TINY, TINY_NEXT, Choice, Vlm
from bench.models.plan import Job, plan
from bench.results import STAGES, CheckResult, ModelRow, read_results
from tests.bench.suites import CPU, quick, run_suite

pytestmark = pytest.mark.usefixtures("one_thread")
JOB = Job(TINY, 1, (8,))


@pytest.fixture(autouse=True)
def two_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "measure", quick)


def end_to_end(folder: Path, seconds: float = 600) -> tuple[int, list[ModelRow]]:
    return run_suite(run.run, "e2e", folder, seconds)


def test_every_variant_gets_a_row_that_can_be_read_again(tmp_path: Path) -> None:
    refused, rows = end_to_end(tmp_path)
    assert refused == 0 and read_results(tmp_path / "e2e.json").rows == rows
    kept = [("unpruned", None), ("ocvtp", 8), ("random", 8)]
    assert [(row.model, row.mode, row.selector, row.budget) for row in rows] == [
        (shape.name, mode, selector, budget or shape.num_tokens)
        for shape in (TINY, TINY_NEXT)
        for selector, budget in kept
        for mode in MODES
    ]
    # Keys and values of two layers 128 wide, of prompt and new tokens, in float32.
    per_token = 2 * 2 * 128 * 4
    for row in rows:
        assert row.times is not None and row.note == ""
        assert tuple(row.times.stages) == STAGES and row.times.decode_tokens_per_s > 0
        assert (row.times.stages["pruner"] == 0.0) != row.is_pruned
        assert (row.times.pruner_added_s is None) == (row.selector != "ocvtp")
        if row.model == TINY.name or row.is_pruned:
            length = row.budget + TEXT_TOKENS + NEW_TOKENS
            assert row.times.cache_bytes == length * per_token


def test_what_a_whole_run_times() -> None:
    jobs, short = (plan("cuda", each) for each in (False, True))
    headlines = [("LLaVA-NeXT-7B", 1, (160,)), ("LLaVA-1.5-7B", 1, (64,))]
    assert [(job.shape.name, job.batch, job.budgets) for job in short] == headlines
    assert jobs[:2] == short
    assert {(job.shape.name, job.batch) for job in jobs} == {
        (name, batch)
        for name in ("LLaVA-NeXT-7B", "LLaVA-1.5-7B", "LLaVA-1.5-13B")
        for batch in (1, 8, 32)
    }
    assert jobs[0].shape.num_tokens == 2880 and jobs[0].shape.num_packed == 2928
    for job in jobs:
        everything = {(mode, choice) for mode in MODES for choice in job.choices}
        assert sorted(everything) == sorted(one for group in job.groups for one in group)
        # The pruner's cost is what it adds to the random selector at its side.
        for group in job.groups:
            assert {c.budget for _, c in group if c.selector == "ocvtp"} == {
                c.budget for _, c in group if c.selector == "random"
            }
        alone = [all(c.selector == "unpruned" for _, c in group) for group in job.groups]
        assert sum(alone) == (2 if job.batch == 32 else 0)
    # No row twice.
    rows = [(job.shape.name, job.batch, *one) for job in jobs for g in job.groups for one in g]
    assert len(rows) == len(set(rows)) == 9 * 7 * len(MODES)


def test_the_real_sizes_and_whether_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {}
    for shape in (llava.LLAVA, llava.NEXT, llava.LLAVA_13B):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 2**37))
        with pytest.raises(torch.OutOfMemoryError, match=r"1\.0 GiB are free") as error:
            llava.require_memory(shape, CPU)
        sizes[shape.name] = float(str(error.value).split()[3])
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**37, 2**37))
        llava.require_memory(shape, CPU)
    assert sizes == {"LLaVA-1.5-7B": 13.2, "LLaVA-NeXT-7B": 13.2, "LLaVA-1.5-13B": 24.9}


def test_views_share_parameters_and_nothing_else() -> None:
    vlm = Vlm(TINY, CPU)
    view, handle, placeholders = calls.pruned_view(vlm, Choice("ocvtp", 8), 1)
    assert placeholders == 8 and handle is not None
    assert "get_image_features" in vars(view.model)
    assert "get_image_features" not in vars(vlm.model.model)
    assert all(a is b for a, b in zip(view.parameters(), vlm.model.parameters(), strict=True))


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def too_large(
    self: Static, vlm: Vlm, choice: Choice, batch: int, make: Any = Static.__init__
) -> None:
    if choice.selector == "unpruned":
        raise torch.OutOfMemoryError
    make(self, vlm, choice, batch)


def lazy(one: Any, seeds: Any, honest: Any = run.why_wrong) -> str | None:
    return "lazy" if seeds == run.AFTER_SEEDS else honest(one, seeds)


# What is replaced, and the note of each row that has no times then, by its mode and selector.
FAULTS: dict[str, tuple[Any, str, Any, Callable[[str, str], str]]] = {
    "a wrong step": (
        *(Static, "step", lambda self, token: torch.zeros(1, 512)),
        lambda mode, _: "refused: a token decoded from the cache .*" if mode == "static" else "",
    ),
    "wrong in the end": (run, "why_wrong", lazy, lambda *_: "refused: after the timing, lazy"),
    "a wrong pruner": (
        *(run, "check_variant", lambda *_, **__: CheckResult(False, "ids out of range")),
        lambda _, name: "refused: the pruner: ids out of range" if name == "ocvtp" else "",
    ),
    "it cannot be timed": (
        *(run, "measure", failing(RuntimeError("no such kernel\nand more"))),
        lambda *_: "refused: the timing fails: RuntimeError: no such kernel",
    ),
    "one is too large": (
        *(Static, "__init__", too_large),
        lambda *one: "out of memory" if one == ("static", "unpruned") else "",
    ),
    "memory ends while it is timed": (
        *(run, "measure", failing(torch.OutOfMemoryError())),
        lambda *_: "out of memory while taking turns",
    ),
    "the model is too large": (
        *(run, "Vlm", failing(torch.OutOfMemoryError("the weights take 14 GiB"))),
        lambda *_: "out of memory: the weights take 14 GiB",
    ),
    "the model is wrong": (
        *(run, "why_model_is_wrong", lambda _: "it is another"),
        lambda *_: "refused: it is another",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_is_a_row_that_says_why(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, replacement, note_of = FAULTS[fault]
    monkeypatch.setattr(run, "plan", lambda *_: [JOB])
    monkeypatch.setattr(owner, name, replacement)
    refused, rows = end_to_end(tmp_path)
    assert [(row.mode, row.selector) for row in rows] == [(m, c.selector) for m, c in JOB.groups[0]]
    notes = [note_of(row.mode, row.selector) for row in rows]
    assert any(notes) and refused == sum(note.startswith("refused") for note in notes)
    for row, note in zip(rows, notes, strict=True):
        assert re.fullmatch(note, row.note) and (row.times is None) == bool(note)
        # Without the pruner beside it the random selector has nothing to be compared with.
        added = row.times and row.times.pruner_added_s
        assert (added is None) == (row.times is None or row.selector != "ocvtp")


@pytest.mark.slow
def test_a_deadline_leaves_models_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert end_to_end(tmp_path, seconds=-1) == (0, [])
    assert "out of time: tiny LLaVA-1.5, batch 1 and what" in capsys.readouterr().out
    # A job that would end too late does not begin to be timed.
    monkeypatch.setattr(run, "WARM", math.inf)
    assert end_to_end(tmp_path) == (0, [])
    said = "out of time: tiny LLaVA-NeXT, batch 1 is left out: unpruned 320, ocvtp 8"
    assert said in capsys.readouterr().out
