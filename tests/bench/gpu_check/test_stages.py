"""What each stage makes of what it runs: nothing that did not happen counts as right."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.gpu_check import stages
from bench.gpu_check.running import OUT_OF_TIME, Check, Outcome
from bench.gpu_check.stages import STAGES


class Scripted(Check):
    """A check whose commands are answered here."""

    def __init__(self, folder: Path) -> None:
        super().__init__("cuda", False, folder, folder / "prepared", "abc", 100.0)
        self.log = folder / "stage.log"
        self.log.write_text("the last line\n")
        self.commands: list[tuple[str, ...]] = []
        self.environments: list[dict[str, str]] = []
        self.statuses: list[int] = []
        self.report = ""  # of pytest
        self.answers: list[dict[str, Any]] = []  # of smoke

    def run(self, *command: str, share: float = 1.0, **environment: str) -> int:
        self.commands.append(command)
        self.environments.append(environment)
        for word in command:
            if word.startswith("--junitxml=") and self.report:
                Path(word.partition("=")[2]).write_text(self.report)
        if "bench.gpu_check.smoke" in command and self.answers:
            said = json.dumps(self.answers.pop(0))
            Path(command[command.index("--output") + 1]).write_text(said)
        return self.statuses.pop(0) if self.statuses else 0


def junit(*cases: str) -> str:
    return f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>"


def case(name: str, inside: str = "") -> str:
    return f'<testcase classname="tests.ops.test_gpu" name="{name}">{inside}</testcase>'


PASSED = case("test_two_runs[triton-merge]")
SKIPPED = case("test_two_runs[cuda-merge]", '<skipped message="torch sees no GPU"/>')
FAILED = case("test_two_runs[dtype0-triton-merge]", '<failure message="wrong"/>')


@pytest.fixture
def check(tmp_path: Path) -> Scripted:
    return Scripted(tmp_path)


@pytest.mark.parametrize("stage", ["tests", "kernels"])
def test_only_skipped_tests_are_a_failure_on_a_gpu(check: Scripted, stage: str) -> None:
    check.report = junit(SKIPPED, SKIPPED)
    status, note = STAGES[stage].run(check)
    assert status == 1 and "no test ran: torch sees no GPU" in note
    check.report, check.statuses = "", [OUT_OF_TIME]
    assert STAGES[stage].run(check).status == OUT_OF_TIME
    # Without one, pytest may say that it found none.
    check.device, check.report, check.statuses = "cpu", junit(SKIPPED), [0, 5]
    assert [STAGES[stage].run(check).status for _ in range(2)] == [0, 0]


def test_what_passed_is_counted_by_op_and_backend(check: Scripted) -> None:
    check.report, check.statuses = junit(PASSED, PASSED, SKIPPED, FAILED), [1]
    assert STAGES["tests"].run(check) == Outcome(1, "2 passed, 1 failed, 1 skipped")
    facts = check.facts["gpu tests"]
    assert facts["by subject"] == {"merge on triton": [2, 1]}
    assert facts["failed"] == ["tests.ops.test_gpu::test_two_runs[dtype0-triton-merge]"]


def test_files_and_marks_are_named(check: Scripted) -> None:
    check.report = junit(PASSED)
    assert [STAGES[stage].run(check).status for stage in ("tests", "kernels")] == [0, 0]
    tests, kernels = check.commands
    assert {"tests/ops/test_gpu.py", "tests/ops/prune/test_gpu.py"} <= set(tests)
    by_op = {f"tests/ops/{op}/test_triton.py" for op in ("prune", "slot_attention")}
    assert {"interpreter", "-n", *by_op} <= set(kernels) and {"gpu", "-n"} <= set(tests)


@pytest.mark.parametrize("stage", ["sanitizer", "profile"])
def test_a_missing_tool_is_a_failure_on_a_gpu_alone(
    check: Scripted, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setattr(stages, "_has_tool", lambda _: False)
    assert STAGES[stage].run(check).status == 1
    check.device = "cpu"
    assert STAGES[stage].run(check).status == 0


def test_every_sanitizer_is_run_though_one_finds_something(
    check: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "_has_tool", lambda _: True)
    check.statuses = [0, 9, OUT_OF_TIME]
    outcome = STAGES["sanitizer"].run(check)
    assert outcome == Outcome(1, "memcheck of cuda: status 9; racecheck of cuda: out of time")
    assert [command[2] for command in check.commands] == ["memcheck", "memcheck", "racecheck"]
    assert all(each["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1" for each in check.environments)


def test_native_objects_that_do_not_load_after_the_build_are_a_failure(check: Scripted) -> None:
    check.log.write_text("chip 9.0\nit is not built\n")
    check.statuses = [1, 0, 1]
    assert STAGES["build"].run(check).status == 1
    assert check.environments[1]["OCVTP_CUDA_ARCHITECTURES"] == "9.0"
    check.commands, check.statuses = [], [1, 0, 0, 1]
    assert STAGES["build"].run(check).status == 1
    assert {"bench.gpu_check.smoke", "--backends"} <= set(check.commands[-1])
    check.commands = []
    assert STAGES["build"].run(check) == Outcome(0, "the native objects are here")
    assert len(check.commands) == 1
    # Without a GPU nothing is built over what there is.
    check.statuses = [2]
    assert STAGES["build"].run(check) == Outcome(2, "it is not built")
    assert len(check.commands) == 2


def test_ceilings_are_measured_once(check: Scripted) -> None:
    STAGES["prune"].run(check)
    (check.folder / "prune.json").write_text("{}")
    STAGES["e2e"].run(check)
    first, second = check.commands
    assert "--ceilings" not in first and "--ceilings" in second
    assert {"--short", "--commit", "abc"} <= set(first)
    # It stops by itself before it is stopped.
    assert float(first[first.index("--seconds") + 1]) == 80.0


def test_what_was_left_out_for_want_of_time_is_said(check: Scripted) -> None:
    check.log.write_text("out of time: the last 3 of 12 cases are left out\n9 rows, 0 refused\n")
    note = "out of time: the last 3 of 12 cases are left out; 9 rows, 0 refused"
    assert STAGES["prune"].run(check) == Outcome(0, note)


def test_a_backend_that_was_built_stands_beside_the_others(check: Scripted) -> None:
    check.answers = [
        {"answers": [{"backend": "triton"}], "absent": {"cuda": "not built"}, "chip": "sm_90"},
        {"answers": [{"backend": "cuda"}], "absent": {}, "chip": "sm_90"},
    ]
    assert STAGES["smoke"].run(check) == Outcome(0, "cuda is not here yet: not built")
    check.statuses = [1, 0, 0, 0]
    assert STAGES["build"].run(check).status == 0
    assert [one["backend"] for one in check.facts["smoke"]["answers"]] == ["triton", "cuda"]
    assert check.facts["smoke"]["absent"] == {}
    # Asked again, it begins anew.
    check.answers = [{"answers": [{"backend": "triton"}], "absent": {}, "chip": "sm_90"}]
    STAGES["smoke"].run(check)
    assert len(check.facts["smoke"]["answers"]) == 1


def test_compile_is_followed_by_other_peoples_kernels(check: Scripted) -> None:
    check.statuses = [1, 0]
    assert STAGES["compile"].run(check).status == 1
    assert [given[5] for given in check.commands] == ["compile", "ops"]
    assert check.commands[1][-2:] == ("--op", "slot_attention,attention_received")


def test_what_ncu_says_is_kept_by_workload(
    check: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "_has_tool", lambda _: True)
    table = """==PROF== Connected to process 7
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","7","linear_kernel(float *)","gpu__time_duration.sum","ns","12,345"
"0","7","linear_kernel(float *)","sm__throughput.avg.pct_of_peak_sustained_elapsed","%","41.5"
"1","7","resolve_kernel","gpu__time_duration.sum","ns","2,000"
"1","7","resolve_kernel","an unknown metric","","n/a"
"""
    for place in (0, 1):
        (check.folder / f"ncu-{place}.csv").write_text(table)
    check.statuses = [0, 0, 1]
    outcome = STAGES["profile"].run(check)
    assert outcome.status == 1 and "workload 2: status 1, 0 kernels" in outcome.note
    kernels = [{"kernel": "linear_kernel", "ns": 12345.0, "sm": 41.5}]
    kernels += [{"kernel": "resolve_kernel", "ns": 2000.0}]
    assert check.facts["profile"] == [
        {"workload": f"B {batch}, N 576, K 64, bfloat16", "kernels": kernels} for batch in (1, 64)
    ]


def test_a_gpu_has_the_bundles_cache_and_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "mine")
    code = "import os, json; print(json.dumps(dict(os.environ)))"
    found = []
    for device in ("cpu", "cuda"):
        check = Check(device, False, tmp_path, tmp_path, None, 60.0, tmp_path / f"{device}.log")
        assert check.run(sys.executable, "-c", code, GIVEN="1") == 0
        found.append(json.loads(check.said().splitlines()[-1]))
    cpu, cuda = found
    assert cuda["TRITON_INTERPRET"] == "0"
    assert cpu["GIVEN"] == cuda["GIVEN"] == "1"
    assert cpu["PYTHONPATH"] == "mine" and "TRITON_CACHE_DIR" not in cpu
    assert cuda["PYTHONPATH"] == f"{tmp_path / 'site'}{os.pathsep}mine"
    assert cuda["TRITON_CACHE_DIR"] == str(tmp_path / "triton-cache")
