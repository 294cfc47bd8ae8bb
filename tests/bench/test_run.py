"""The whole bench on tiny workloads: refusals, exit status, result files, another revision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import base, jobs, run, variants
from bench.checkout import BuildError
from bench.ops import BENCHES, case_of
from bench.results import OURS, Ceilings, OpRow, Results, read_results
from bench.usage import usages
from bench.variants import Variant, flashslice_variant
from bench.workloads import Workload, Workloads
from ocvtp_kernels import backends, ops
from tests.bench.suites import quick

TINY = Workload(2, 40, 7, 7, 24, 16)
CPU = torch.device("cpu")
Rows = dict[tuple[str, str, str], OpRow]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "workloads", lambda *_: Workloads((TINY,), (TINY,), (), (TINY,)))
    ceilings = Ceilings(10.0, {"float32": 0.1, "bfloat16": 0.1})
    monkeypatch.setattr(run, "measure_ceilings", lambda *_: ceilings)
    monkeypatch.setattr(jobs, "measure", quick)


def bench(folder: Path, *options: str, suite: str = "ops") -> tuple[int, Rows, Results]:
    named = [] if "--op" in options else ["--suite", suite]
    status = run.main([*named, "--device", "cpu", "--output", str(folder), *options])
    found = read_results(folder / f"{suite}.json")
    return status, {(row.op, row.variant, row.direction): row for row in found.op_rows()}, found


def test_prune_is_beside_its_baselines(tmp_path: Path) -> None:
    status, rows, _ = bench(tmp_path, suite="prune")
    assert status == 0
    assert set(rows) == {("prune", who, "forward") for who in ("eager", "published", OURS)}
    for row in rows.values():
        assert row.gate.passed and row.taken.method == "host"


def test_torch_compile_is_beside_ours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(variants, "shutil", SimpleNamespace(which=lambda _: "a compiler"))
    status, rows, _ = bench(tmp_path, suite="compile")
    assert status == 0
    assert set(rows) == {("prune", who, "forward") for who in ("compile", OURS)}


def test_every_op_gets_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, rows, _ = bench(tmp_path)
    assert status == 0 and all(row.times is not None for row in rows.values())
    timed = {(op, direction) for op, variant, direction in rows if variant == OURS}
    both = {(op, "backward") for op, one in BENCHES.items() if one.backward_work}
    assert timed == both | {(op, "forward") for op in BENCHES if op != "prune"}


def test_single_ops_at_any_size_and_in_any_mode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, rows, _ = bench(tmp_path, "--op", "merge,match_select")
    assert {op for op, _, _ in rows} == {"merge", "match_select"}
    sizes = ("--batch", "1,3", "--tokens", "20", "--slots", "5", "--mode", "busy,inference_mode")
    status, _, found = bench(tmp_path, "--op", "prune", *sizes, "--baselines", "eager")
    loads = [row.workload for row in found.op_rows() if row.is_ours and row.direction == "forward"]
    expected = replace(TINY, num_tokens=20, num_slots=5, budget=5)
    assert status == 0 and loads == [
        replace(expected, batch=batch, mode=mode)
        for batch in (1, 3)
        for mode in ("busy", "inference_mode")
    ]
    assert {row.variant for row in found.op_rows()} == {"eager", OURS}
    for wrong, said in (
        (["--op", "merge,murge"], "got murge"),
        (["--op", "merge", "--mode", "hot"], "got hot"),
        (["--op", "merge", "--mode", "views"], "views is no way to run merge"),
        (["--op", "merge", "--suite", "prune"], "got prune"),
        (["--op", "merge", "--batch", "0"], "numbers such as"),
        (["--suite", "prune", "--batch", "1"], "go with --op"),
        ([], "--op or --suite"),
    ):
        with pytest.raises(SystemExit):
            run.main([*wrong, "--device", "cpu"])
        assert said in capsys.readouterr().err


def test_a_mode_of_another_op_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mode: expected one of no_grad.*for merge, got views"):
        case_of("merge", replace(TINY, mode="views"), CPU)


WAYS = list(dict.fromkeys((op, load.mode, load.dtype, way) for op, load, way in usages()))


@pytest.mark.parametrize(("op", "mode", "dtype", "direction"), WAYS, ids=map("-".join, WAYS))
def test_every_usage_passes_the_gate(op: str, mode: str, dtype: str, direction: Any) -> None:
    load = replace(TINY, mode=mode, dtype=dtype, threads=1)
    job = jobs.Job(op, load, direction, ("eager",))
    rows, _ = jobs.time_job(job, CPU, 0.0)
    assert {row.variant for row in rows} == {"eager", OURS}
    for row in rows:
        assert row.gate.passed, f"{row.variant}: {row.gate.note}"
        assert row.taken.method == "cpu"


def test_what_fails_while_it_is_timed_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(TINY, batch=1)
    monkeypatch.setattr(run, "workloads", lambda *_: Workloads((TINY, other), ()))
    honest, calls = jobs.measure, []

    def breaks(*given: Any, **options: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            raise RuntimeError("an illegal access\nand more")
        return honest(*given, **options)

    monkeypatch.setattr(jobs, "measure", breaks)
    status, _, found = bench(tmp_path, suite="prune")
    rows = found.op_rows()
    assert status == 1 and [row.times is None for row in rows] == [True, *3 * [False]]
    assert rows[0].gate.note == "the timing fails: RuntimeError: an illegal access"


def test_a_wrong_kernel_gets_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(*arguments: Any) -> Any:
        updates, mass = ops.slot_attention.reference(*arguments)
        return updates * 1.01, mass

    monkeypatch.setitem(backends._kernels["slot_attention"], "cpu", backends.Kernel(wrong))
    status, rows, _ = bench(tmp_path, "--op", "slot_attention,slot_attention_step")
    assert status == 1
    row = rows["slot_attention", OURS, "forward"]
    assert row.times is None and not row.gate.passed and "error" in row.gate.note
    # An op made of it is refused too; the baseline beside it is not.
    assert rows["slot_attention_step", OURS, "forward"].times is None
    assert rows["slot_attention", "eager", "forward"].times is not None
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith(f"| slot_attention forward | {OURS} |")]
    assert "refused: " in line and " ms" not in line


def test_who_turns_lazy_during_the_timing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def lazy(*arguments: Any) -> Any:
        # Honest for as long as the gate looks on.
        if len(calls) < 4:
            calls.append(ops.slot_attention.reference(*arguments))
        return calls[-1]

    honest = jobs.variants_of

    def variants_of(case: Any, direction: str, baselines: Any) -> Any:
        found, skipped = honest(case, direction, baselines)
        if case.op == "slot_attention" and direction == "forward":
            scale = case.workload.slot_dim**-0.5
            found.append(Variant("lazy", lambda q, k, v: lazy(q, k, v, scale)))
        return found, skipped

    monkeypatch.setattr(jobs, "variants_of", variants_of)
    status, rows, _ = bench(tmp_path, "--op", "slot_attention")
    row = rows["slot_attention", "lazy", "forward"]
    assert status == 1 and row.times is None
    assert row.gate.note.startswith("after the timing, ")


def test_a_deadline_leaves_cases_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, rows, _ = bench(tmp_path, "--seconds", "0", suite="prune")
    assert status == 0 and not rows
    assert "the last 1 of 1 cases are left out" in capsys.readouterr().out


def test_ceilings_alone_and_of_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, rows, found = bench(tmp_path, suite="ceilings")
    assert not rows and found.ceilings.copy_gb_s == 10.0
    monkeypatch.setattr(run, "measure_ceilings", None)
    earlier = tmp_path / "ceilings.json"
    given = ("--seconds", "0", "--commit", "abc", "--ceilings", str(earlier))
    _, _, again = bench(tmp_path, *given, suite="prune")
    assert again.ceilings == found.ceilings and again.commit == "abc"
    replace(found, device="another").save(tmp_path)
    with pytest.raises(SystemExit):
        bench(tmp_path, *given, suite="prune")
    assert "got those of another" in capsys.readouterr().err


@pytest.mark.slow
def test_another_revision_takes_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, rows, _ = bench(tmp_path, "--op", "merge", "--base", "HEAD")
    (name,) = {variant for _, variant, _ in rows if variant.startswith("base ")}
    assert status == 0 and set(rows) == {
        ("merge", who, direction)
        for who in ("eager", OURS, name)
        for direction in ("forward", "backward")
    }
    # A revision without the package answers nothing.
    monkeypatch.setattr(base, "built", lambda *_: tmp_path)
    with pytest.raises(BuildError, match=r"today's bench does not run on it: .*bench"):
        base.Base("HEAD", CPU)


def test_an_unknown_revision_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--op", "merge", "--device", "cpu", "--base", "no-such-revision"])
    assert "no-such-revision" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_gpu_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run.main(["--suite", "ops", "--device", "cuda"])
    assert error.value.code == 2 and "sees no GPU" in capsys.readouterr().err


def test_flashslice_says_why_it_is_left_out() -> None:
    assert "CUDA" in getattr(flashslice_variant(TINY, CPU), "reason", "")
