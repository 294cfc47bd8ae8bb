from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.gpu_check.screen import CHARACTERS, LINES, TABLE_WIDTH, screen
from bench.gpu_check.stages import STAGES
from bench.gpu_check.tests_read import read_junit, subject_of
from bench.report.tables import models_table, prune_table, summaries
from bench.results import OURS, ModelRow
from tests.bench.report.samples import gpu, model_rows, op_row, results, selector_rows


def summary(**facts: Any) -> dict[str, Any]:
    stages = [
        {"stage": name, "status": 0, "seconds": 12.3, "compiled": 4, "note": "a note"}
        for name in STAGES
    ]
    return {"device": "cuda", "commit": "abc", "stages": stages, "facts": facts}


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


def test_what_was_measured_stands_in_the_reports_tables(tmp_path: Path) -> None:
    files = [*gpu("events"), results("e2e", model_rows()), results("selectors", selector_rows())]
    for file in files:
        file.save(tmp_path)
    (tmp_path / "host.json").write_text("{")
    lines = screen(summary(), tmp_path)
    shown = "\n".join(lines)
    assert prune_table(files)[1] in shown
    few = [row for row in model_rows() if isinstance(row, ModelRow) and row.batch == 1]
    first = models_table([row for row in few if row.selector != "random"])
    assert f"imaginary\n{first}\n" in shown
    assert " ".join(sentence for sentence, _ in summaries(files)) in " ".join(lines)
    unreadable, *refused = lines[-3:]
    assert unreadable.startswith(f"failed: {tmp_path / 'host.json'}: cannot be read")
    wrong = "prune forward, csrc, B 8 · N 576 · K 64 · bfloat16; divprune, B 64"
    assert refused[0].startswith(f"refused: wrong | ids: {wrong}")
    assert refused[1].startswith("refused: out of memory: imaginary, batch 8, static")


def test_it_is_one_screen_whatever_failed(tmp_path: Path) -> None:
    names = [f"tests.ops.slot_attention.test_triton::test_one[{number}]" for number in range(900)]
    subjects = {f"op_{number} on triton": [number, number % 2] for number in range(80)}
    facts = {"gpu tests": {"failed": names, "by subject": subjects, "passed": 1}}
    kernels = [{"kernel": f"{place}_kernel", "ns": 1000.0 + place} for place in range(14)]
    profile = [{"workload": "B 1, N 576", "kernels": kernels}] * 3
    variants = (OURS, "eager", "published", "compile", *(name * 20 for name in "abcdefgh"))
    rows = [op_row("prune", name, 1e-4, batch=b) for b in range(1, 40) for name in variants]
    results("prune", rows).save(tmp_path)
    models = [replace(row, model=f"model {n}") for n in range(9) for row in model_rows()]
    results("e2e", models).save(tmp_path)
    lines = screen(summary(profile=profile, **facts), tmp_path)
    assert len(lines) == LINES and max(map(len, lines)) == TABLE_WIDTH
    assert sum(len(line) + 1 for line in lines) <= CHARACTERS
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
