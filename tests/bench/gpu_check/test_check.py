"""The check's command: stages, their order and limits, and what comes back."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import checkout
from bench.gpu_check import __main__ as command
from bench.gpu_check import bundle
from bench.gpu_check.running import OUT_OF_TIME, Check, Outcome
from bench.gpu_check.stages import NONE_RIGHT, STAGES, Stage
from tests.bench.suites import empty_results

SCRIPT = checkout.ROOT / "bench" / "gpu_check.sh"


class Command:
    """The command in a folder of its own, with stages that do nothing unless told."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.out, self.work, self.patch = folder / "out", folder / "build" / "gpu_check", patch
        patch.setattr(command, "ROOT", folder)
        patch.setattr(checkout, "commit", lambda: "abc")
        patch.delenv("TRITON_INTERPRET", raising=False)
        for name in STAGES:
            self.replace(name, lambda _: Outcome(0))

    def replace(self, name: str, does: Callable[[Check], Outcome]) -> None:
        self.patch.setitem(STAGES, name, Stage(1, 60, does))

    def __call__(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Its status and summary."""
        status = command.main(["--device", "cpu", "--output", str(self.out), *arguments])
        return status, json.loads((self.out / "summary.json").read_text("utf-8"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(tmp_path, monkeypatch)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize("arguments", [["--device", "tpu"], ["--only", "nothing"], ["--fast"]])
def test_bad_arguments_are_refused(tmp_path: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env={**os.environ, "OUT": str(tmp_path / "out"), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and "usage" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_gpu_is_not_checked_in_the_interpreter(
    run: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    run.patch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit) as error:
        run("--device", "cuda")
    assert error.value.code == 2 and "unset TRITON_INTERPRET" in capsys.readouterr().err
    assert run()[0] == 0


def test_all_stages_in_order(run: Command) -> None:
    status, summary = run()
    assert status == 0 and summary["commit"] == "abc"
    assert [one["stage"] for one in summary["stages"]] == list(STAGES)
    assert list(STAGES)[:5] == ["smoke", "build", "warm", "tests", "prune"]


def test_the_plan_leaves_two_of_fifteen_minutes_and_the_guide_says_so() -> None:
    # Starting a machine takes up to two minutes more.
    assert sum(stage.expected for stage in STAGES.values()) <= command.TOTAL_S - 2 * 60
    assert command.TOTAL_S == 13 * 60
    assert all(stage.expected < stage.max_s for stage in STAGES.values())
    guide = (checkout.ROOT / "docs" / "gpu.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \|", guide, re.MULTILINE)
    assert rows == [(name, str(one.expected), str(one.max_s)) for name, one in STAGES.items()]
    assert f"({command.TOTAL_S} s)" in guide


def test_a_failed_stage_is_recorded_and_the_rest_goes_on(run: Command) -> None:
    run.replace("prune", lambda _: Outcome(1, "it broke"))
    status, summary = run("--only", "sanitizer,prune")
    assert status == 1
    found = [(one["stage"], one["status"], one["note"]) for one in summary["stages"]]
    assert found == [("prune", 1, "it broke"), ("sanitizer", 0, "")]
    # Where no backend is right, nothing else is run.
    run.replace("smoke", lambda _: Outcome(NONE_RIGHT, "none"))
    status, summary = run()
    assert status == NONE_RIGHT and [one["stage"] for one in summary["stages"]] == ["smoke"]


def test_no_stage_has_more_than_its_own_time_or_what_is_left(run: Command) -> None:
    limits = []

    def look(check: Check) -> Outcome:
        limits.append(check.limit)
        return Outcome(0)

    run.replace("prune", look)
    run("--only", "prune", "--total", "1000")
    run("--only", "prune", "--total", "30")
    assert limits[0] == 60 and 29 < limits[1] <= 30
    status, summary = run("--only", "prune", "--total", "5")
    assert status == 1 and len(limits) == 2
    assert summary["stages"][0]["status"] == OUT_OF_TIME
    assert "not begun" in summary["stages"][0]["note"]


def test_a_second_command_brings_back_what_the_first_found(run: Command) -> None:
    def write(check: Check) -> Outcome:
        empty_results("prune").save(check.folder)
        check.facts["smoke"] = {"device": "a device"}
        return Outcome(0)

    run.replace("prune", write)
    run("--only", "smoke,prune")
    shutil.rmtree(run.out)
    _, summary = run("--only", "sanitizer")
    assert [one["stage"] for one in summary["stages"]] == ["smoke", "prune", "sanitizer"]
    assert summary["facts"]["smoke"]["device"] == "a device"
    assert (run.out / "prune.json").exists()
    # Another commit, or all stages, begins anew.
    _, summary = run("--only", "sanitizer", "--commit", "def")
    assert [one["stage"] for one in summary["stages"]] == ["sanitizer"]
    run.replace("prune", lambda _: Outcome(0))
    run()
    assert not (run.work / "cpu" / "prune.json").exists()


def test_at_most_eight_files_come_back_after_every_stage(run: Command) -> None:
    def everything(check: Check) -> Outcome:
        for suite in command.SUITES:
            empty_results(suite).save(check.folder)
        (check.folder / "gpu.xml").write_text("<testsuites/>")
        (check.folder / "ncu-0.csv").write_text("")
        return Outcome(0)

    def killed(_: Check) -> Outcome:
        raise KeyboardInterrupt

    run.replace("smoke", everything)
    run.replace("build", killed)
    with pytest.raises(KeyboardInterrupt):
        run()
    files = {path.name for path in run.out.iterdir()}
    assert len(files) == 8 and {"summary.json", "screen.txt", "logs.tgz"} <= files
    with tarfile.open(run.out / "logs.tgz") as logs:
        assert set(logs.getnames()) == {"smoke.log", "gpu.xml", "ncu-0.csv"}


def test_the_bundle_is_put_in_its_place_on_a_gpu_alone(run: Command, tmp_path: Path) -> None:
    installed: list[Any] = []
    run.patch.setattr(bundle, "install", lambda *given: installed.append(given) or "installed")
    prepared = tmp_path / bundle.FOLDER
    prepared.mkdir()
    run("--only", "smoke")
    assert installed == []
    run("--only", "smoke", "--device", "cuda")
    assert installed == [(prepared, run.work / "cuda")]
