from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.gpu_check.screen import LINES, WIDTH, screen
from bench.gpu_check.stages import STAGES
from bench.gpu_check.tests_read import read_junit, subject_of
from bench.results import CheckResult, Method, ModelRow, ModelTimes, OpRow, Row, SelectorRow, Times
from bench.workloads import Workload
from ocvtp_kernels.cost.work import Work
from tests.bench.suites import empty_results


def summary(**facts: Any) -> dict[str, Any]:
    stages = [
        {"stage": name, "status": 0, "seconds": 12.3, "compiled": 4, "note": "a note"}
        for name in STAGES
    ]
    return {"device": "cuda", "commit": "abc", "stages": stages, "facts": facts}


def times(seconds: float, method: Method = "graph") -> Times:
    return Times(seconds, seconds, seconds, 5, method)


def row(variant: str, method: Method, seconds: float | None, batch: int = 1) -> OpRow:
    load = Workload(batch, 576, 64, 64, dtype="bfloat16")
    gate = CheckResult(seconds is not None, "ids out of range")
    took = None if seconds is None else times(seconds, method)
    return OpRow("prune", variant, "forward", load, Work(0, 125_000), gate, took)


def write(folder: Path, suite: Any, rows: list[Row]) -> None:
    replace(empty_results(suite), rows=rows).save(folder)


def test_the_machine_and_every_stage(tmp_path: Path) -> None:
    smoke = {
        "device": "NVIDIA H100",
        "chip": "sm_90",
        "driver": "580",
        "versions": {"torch": "2.11.0"},
        "answers": [
            {"backend": "triton", "workload": "B=1 N=576 K=64 T=64 1024->512 float32"}
            | {"right": True, "note": "ids exact", "seconds": 7.4e-5},
            {"backend": "cuda", "workload": "B=1", "right": False, "note": "NaN", "seconds": None},
        ],
    }
    lines = screen(summary(smoke=smoke), tmp_path)
    assert "NVIDIA H100, sm_90, driver 580; torch 2.11.0; commit abc" in lines[0]
    assert "triton B=1 N=576 K=64 float32 74 us" in lines[1]
    for name in STAGES:
        assert any(line.startswith(f"{name} ") and "ok" in line for line in lines)
    assert lines[-1] == "wrong: cuda B=1: NaN"


def test_prune_beside_its_baselines(tmp_path: Path) -> None:
    rows: list[Row] = [
        row("ocvtp", "graph", 5e-5), row("eager", "graph", 1e-3), row("csrc", "graph", 2e-4),
        row("ocvtp", "events", 4e-4), row("eager", "events", 2e-3), row("published", "events", 2.0),
        row("ocvtp", "graph", 1e-3, batch=64), row("csrc", "graph", None, batch=64),
    ]  # fmt: skip
    write(tmp_path, "prune", rows)
    write(tmp_path, "compile", [row("compile", "events", 3e-4), row("ocvtp", "events", 4e-4)])
    lines = screen(summary(), tmp_path)
    (line,) = [line for line in lines if line.startswith("B 1,")]
    cells = ["50", "1000", "200", "400", "2000", ">", "1", "s", "300", "25.0%"]
    assert line.split()[-len(cells) :] == cells
    (line,) = [line for line in lines if line.startswith("B 64,")]
    assert line.split()[-3:] == ["1000", "refused", "1.2%"]
    what = "prune csrc forward B 64, N 576, K 64, bf16"
    assert lines[-1] == f"refused: {what}: ids out of range"


def test_the_first_token_by_stage(tmp_path: Path) -> None:
    stages = {"encoder": 0.004, "pruner": 0.0005, "projector": 0.0001, "prefill": 0.02}
    took = ModelTimes(times(0.0246), stages, 90.0, 2**20, None)  # type: ignore[arg-type]
    rows: list[Row] = [
        ModelRow("LLaVA", "static", "ocvtp", 1, 64, 576, took, ""),
        ModelRow("LLaVA", "static", "random", 1, 64, 576, took, ""),
        ModelRow("LLaVA", "static", "unpruned", 1, 576, 576, None, "out of memory"),
    ]
    write(tmp_path, "e2e", rows)
    lines = screen(summary(), tmp_path)
    (line,) = [line for line in lines if line.startswith("LLaVA static ocvtp 64")]
    assert line.split()[-5:] == ["24.60", "4.00", "0.50", "0.10", "20.00"]
    assert any(line.startswith("LLaVA") and line.endswith("out of memory") for line in lines)
    assert not any("random" in line for line in lines)
    assert lines[-1] == "refused: LLaVA static unpruned: out of memory"


def test_a_selector_that_is_wrong_and_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    gate = CheckResult(False, "ids out of range")
    head = ("trim", 64, 576, 1024, 64, "float32", gate)
    write(tmp_path, "selectors", [SelectorRow(*head, None, None, None, None, None)])
    (tmp_path / "ops.json").write_text("{")
    unreadable, wrong = screen(summary(), tmp_path)[-2:]
    assert unreadable.startswith(f"failed: {tmp_path / 'ops.json'}: cannot be read")
    assert wrong == "refused: trim B 64: ids out of range"


def test_it_is_one_screen_whatever_failed(tmp_path: Path) -> None:
    names = [f"tests.ops.slot_attention.test_triton::test_one[{number}]" for number in range(900)]
    subjects = {f"op_{number} on triton": [number, number % 2] for number in range(80)}
    facts = {"gpu tests": {"failed": names, "by subject": subjects, "passed": 1}}
    kernels = [{"kernel": f"{place}_kernel", "ns": 1000.0 + place} for place in range(14)]
    profile = [{"workload": "B 1, N 576", "kernels": kernels}] * 3
    write(tmp_path, "prune", [row("ocvtp", "graph", 1e-4, batch=b) for b in range(1, 40)])
    write(tmp_path, "selectors", [])
    lines = screen(summary(profile=profile, **facts), tmp_path)
    assert len(lines) == LINES and max(map(len, lines)) <= WIDTH
    assert sum(len(line) + 1 for line in lines) < 12_000
    assert "more, in logs.tgz" in lines[-1]
    assert any("OP_1 ON TRITON 1 OF 2 WRONG" in line for line in lines)
    assert any(line.startswith("ncu B 1, N 576: 14 kernels, 14.1 us: 13 1.0") for line in lines)


def test_nothing_was_measured(tmp_path: Path) -> None:
    assert len(screen({**summary(), "stages": []}, tmp_path)) == 2


def test_what_a_test_is_about() -> None:
    ops = "tests.ops.test_gpu::test_never_waits_for_the_device"
    assert subject_of(f"{ops}[dtype0-triton-slot_attention]") == "slot_attention on triton"
    assert subject_of(f"{ops}[chosen-merge]") == "merge on the one chosen"
    assert subject_of("tests.ops.test_every_op_in_triton::test_opcheck[dtype1-prune]") == "prune"
    of_one_op = "ops.slot_attention.test_triton"
    assert subject_of(f"tests.{of_one_op}::test_one[triton-7]") == of_one_op


def test_a_report_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "gpu.xml"
    path.write_text("<testsuites><testsuite>")
    assert read_junit(path).count() == "0 passed, 0 failed, 0 skipped"
