"""Whole models on the CPU: rows, refusals, memory that does not suffice."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from bench import llava, llava_calls, llava_models, llava_plan, run
from bench.ceilings import Ceilings
from bench.gate import CheckResult
from bench.llava_calls import MODES, NEW_TOKENS, Static
from bench.llava_models import OCVTP, RANDOM, TEXT_TOKENS, TINY, TINY_NEXT, UNPRUNED, Choice, Vlm
from ocvtp_kernels.report.results import read_result

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    measure = llava.measure
    monkeypatch.setattr(llava, "measure", lambda calls, **_: measure(calls, rounds=(2, 2)))
    monkeypatch.setattr(run, "measure_ceilings", lambda *_: Ceilings(10.0, {"float32": 0.1}))
    threads = torch.get_num_threads()
    # Matrices so small gain nothing from more, and other tests want the cores.
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def end_to_end(folder: Path, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    status = run.main(["e2e", "--device", "cpu", "--short", "--output", str(folder), *arguments])
    rows: list[dict[str, Any]] = json.loads((folder / "e2e.json").read_text("utf-8"))["rows"]
    return status, rows


def only(monkeypatch: pytest.MonkeyPatch, *jobs: llava_plan.Job) -> None:
    monkeypatch.setattr(llava, "plan", lambda *_: list(jobs))


def test_every_variant_gets_a_row_that_the_report_reads(tmp_path: Path) -> None:
    status, rows = end_to_end(tmp_path)
    assert status == 0
    kept = [(UNPRUNED, None), (OCVTP, 8), (RANDOM, 8)]
    assert [(row["model"], row["mode"], row["selector"], row["budget"]) for row in rows] == [
        (shape.name, mode, selector, budget or shape.num_tokens)
        for shape in (TINY, TINY_NEXT)
        for selector, budget in kept
        for mode in MODES
    ]
    for row in rows:
        assert set(row["stages"]) == {"encoder", "pruner", "projector", "prefill"}
        assert (row["stages"]["pruner"] == 0.0) == (row["selector"] == UNPRUNED)
        assert row["ttft_s"] > 0 and row["decode_tokens_per_s"] > 0 and row["note"] == ""
        assert (row["pruner_added_s"] is None) == (row["selector"] != OCVTP)
    # Keys and values of two layers 128 wide, of prompt and new tokens, in float32.
    per_token = 2 * 2 * 128 * 4
    assert rows[0]["cache_bytes"] == (64 + TEXT_TOKENS + NEW_TOKENS) * per_token
    assert {row["cache_bytes"] for row in rows if row["budget"] == 8} == {
        (8 + TEXT_TOKENS + NEW_TOKENS) * per_token
    }
    assert all(row.times is not None for row in read_result(tmp_path / "e2e.json").e2e)


def test_what_a_whole_run_times() -> None:
    jobs, short = (llava_plan.plan("cuda", each) for each in (False, True))
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
            assert {c.budget for _, c in group if c.selector == OCVTP} == {
                c.budget for _, c in group if c.selector == RANDOM
            }
        alone = [all(c.selector == UNPRUNED for _, c in group) for group in job.groups]
        assert sum(alone) == (2 if job.batch == 32 else 0)
    # No row twice.
    rows = [(job.shape.name, job.batch, *one) for job in jobs for g in job.groups for one in g]
    assert len(rows) == len(set(rows)) == 9 * 7 * len(MODES)


def test_the_real_sizes_and_whether_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {}
    for shape in (llava_models.LLAVA, llava_models.NEXT, llava_models.LLAVA_13B):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 2**37))
        with pytest.raises(torch.OutOfMemoryError, match=r"1\.0 GiB are free") as error:
            llava_models.require_memory(shape, CPU)
        sizes[shape.name] = float(str(error.value).split()[3])
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**37, 2**37))
        llava_models.require_memory(shape, CPU)
    assert sizes == {"LLaVA-1.5-7B": 13.2, "LLaVA-NeXT-7B": 13.2, "LLaVA-1.5-13B": 24.9}


def test_views_share_parameters_and_nothing_else() -> None:
    vlm = Vlm(TINY, CPU)
    view, handle, placeholders = llava_calls.pruned_view(vlm, Choice(OCVTP, 8), 1)
    assert placeholders == 8 and handle is not None
    assert "get_image_features" in vars(view.model)
    assert "get_image_features" not in vars(vlm.model.model)
    assert all(a is b for a, b in zip(view.parameters(), vlm.model.parameters(), strict=True))


@pytest.mark.slow
def test_a_refused_run_has_a_row_without_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, llava_plan.Job(TINY, 1, (8,)))
    monkeypatch.setattr(Static, "step", lambda self, token: torch.zeros(1, 512))
    status, rows = end_to_end(tmp_path)
    assert status == 1
    assert {row["mode"] for row in rows if row["ttft_s"] is None} == {"static"}
    notes = {row["note"] for row in rows if row["mode"] == "static"}
    assert all(note.startswith("refused: a token decoded from the cache") for note in notes)
    assert all(row["ttft_s"] > 0 for row in rows if row["mode"] == "eager")


@pytest.mark.slow
def test_what_turns_wrong_while_it_is_timed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, llava_plan.Job(TINY, 1, (8,)))
    honest = llava.why_wrong
    monkeypatch.setattr(
        llava, "why_wrong", lambda one, seeds: "it is lazy" if seeds == (3,) else honest(one, seeds)
    )
    status, rows = end_to_end(tmp_path)
    assert status == 1 and {row["note"] for row in rows} == {
        "refused: after the timing, it is lazy"
    }


@pytest.mark.slow
def test_a_wrong_pruner_gets_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, llava_plan.Job(TINY, 1, (8,)))
    monkeypatch.setattr(
        llava, "check_variant", lambda *_, **__: CheckResult(False, "ids out of range")
    )
    status, rows = end_to_end(tmp_path)
    assert status == 1
    for row in rows:
        assert (row["ttft_s"] is None) == (row["selector"] == OCVTP)
        assert row["note"] == ("" if row["ttft_s"] else "refused: the pruner: ids out of range")
    # Without the pruner beside it the random selector has nothing to be compared with.
    assert all(row["pruner_added_s"] is None for row in rows)


def test_a_wrong_model_has_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, llava_plan.Job(TINY, 1, (8,)), llava_plan.Job(TINY, 2, (8,)))
    monkeypatch.setattr(llava, "why_model_is_wrong", lambda _: "it is another")
    assert end_to_end(tmp_path) == (1, [])


@pytest.mark.slow
def test_memory_that_does_not_suffice_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, llava_plan.Job(TINY, 1, (8,)))
    make = Static.__init__

    def too_large(self: Static, vlm: Vlm, choice: Choice, batch: int) -> None:
        if choice.selector == UNPRUNED:
            raise torch.OutOfMemoryError
        make(self, vlm, choice, batch)

    monkeypatch.setattr(Static, "__init__", too_large)
    status, rows = end_to_end(tmp_path)
    assert status == 0
    notes = {(row["mode"], row["selector"]): row["note"] for row in rows}
    assert notes.pop(("static", UNPRUNED)) == "out of memory"
    assert set(notes.values()) == {""} and len(notes) == 5


@pytest.mark.slow
def test_memory_that_ends_during_the_timing_is_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError

    only(monkeypatch, llava_plan.Job(TINY, 1, (8,)))
    monkeypatch.setattr(llava, "measure", too_much)
    status, rows = end_to_end(tmp_path)
    assert status == 0 and len(rows) == 6
    assert {row["note"] for row in rows} == {"out of memory while taking turns"}


@pytest.mark.slow
def test_a_model_that_does_not_fit_is_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: Any) -> Any:
        raise torch.OutOfMemoryError("the weights take 14 GiB")

    monkeypatch.setattr(llava, "Vlm", too_large)
    status, rows = end_to_end(tmp_path)
    assert status == 0 and len(rows) == 12
    assert {row["note"] for row in rows} == {"out of memory: the weights take 14 GiB"}


@pytest.mark.slow
def test_a_deadline_leaves_models_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert end_to_end(tmp_path, "--seconds", "0") == (0, [])
    assert "out of time: tiny LLaVA-1.5, batch 1 and what" in capsys.readouterr().out
    # A job that would end too late does not begin to be timed.
    monkeypatch.setattr(llava, "WARM", math.inf)
    assert end_to_end(tmp_path) == (0, [])
    assert (
        "out of time: tiny LLaVA-NeXT, batch 1 is left out: unpruned 320, ocvtp 8"
        in capsys.readouterr().out
    )
