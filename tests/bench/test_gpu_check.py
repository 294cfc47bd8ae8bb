from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "gpu_check.sh"
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


def check(out: Path, python: str, *arguments: str) -> tuple[int, str, list[dict[str, Any]]]:
    done = subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env={**os.environ, "OUT": str(out), "PYTHON": python},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    summary = out / "summary.json"
    stages = json.loads(summary.read_text("utf-8"))["stages"] if summary.exists() else []
    return done.returncode, done.stdout + done.stderr, stages


def test_a_stage_that_does_not_apply_says_so(tmp_path: Path) -> None:
    status, said, stages = check(tmp_path, sys.executable, "--device", "cpu", "--only", "sanitizer")
    assert status == 0
    (stage,) = stages
    assert stage["stage"] == "sanitizer" and stage["rc"] == 0
    assert stage["note"] in said and "CUDA" in stage["note"]


def test_a_failed_stage_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    status, said, stages = check(
        tmp_path, shutil.which("false") or "false", "--device", "cpu", "--only", "micro,sanitizer"
    )
    assert status == 1, said
    assert [(stage["stage"], stage["rc"]) for stage in stages] == [("micro", 1), ("sanitizer", 0)]
    assert all((tmp_path / stage["log"]).exists() for stage in stages)


@pytest.mark.parametrize("arguments", [["--device", "tpu"], ["--only", "nothing"], ["--fast"]])
def test_bad_arguments_are_refused(tmp_path: Path, arguments: list[str]) -> None:
    status, said, stages = check(tmp_path / "out", sys.executable, *arguments)
    assert status == 2 and "usage" in said and stages == []
