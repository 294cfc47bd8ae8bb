from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "transformers_matrix.sh"
# A Python that makes environments of itself, installs nothing and "tests" by the version's number.
PYTHON = f"""#!/usr/bin/env bash
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *" install "*) echo "$*" >>"$TOLD"; [[ "$*" != *transformers==9.* ]] ;;
  *" pytest "*)
    while [ "$1" != --junitxml ]; do shift; done
    case "$2" in */1.*) failed=0 ;; */2.*) failed=3 ;; *) exit 4 ;; esac
    counts="tests='20' failures='$failed' errors='0' skipped='5'"
    echo "<testsuites><testsuite $counts/></testsuites>" >"$2"
    [ "$failed" = 0 ] ;;
  -*) exec "{sys.executable}" "$@" ;;
esac
"""


def run(folder: Path, *versions: str) -> subprocess.CompletedProcess[str]:
    python = folder / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    told = {"OUT": str(folder), "PYTHON": str(python), "TOLD": str(folder / "told")}
    return subprocess.run(
        [str(SCRIPT), *versions], env={**os.environ, **told}, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("version", "row", "status"),
    [
        ("1.2.3", "15      0       5", 0),
        ("2.0.0", "12      3       5", 1),
        ("3.0.0", "no report", 1),
        ("9.9.9", "not installed", 1),
    ],
)
def test_a_row_a_version(tmp_path: Path, version: str, row: str, status: int) -> None:
    # What an earlier run left there must not be taken for this one's.
    (tmp_path / f"{version}.xml").write_text("<testsuites><testsuite tests='9'/></testsuites>")
    finished = run(tmp_path, "1.0.0", version)
    header, first, second = finished.stdout.splitlines()
    assert header.split() == ["transformers", "passed", "failed", "skipped"]
    assert first.split() == ["1.0.0", "15", "0", "5"]
    assert second.startswith(version) and row in second
    assert finished.returncode == status
    asked = (tmp_path / "told").read_text()
    assert f".[test] transformers=={version}" in asked and "torch==2.13.0" in asked


def test_refuses_what_is_no_version(tmp_path: Path) -> None:
    for wrong in ("--help", "main", "5.16.1;ls"):
        finished = run(tmp_path, wrong)
        assert finished.returncode == 2 and finished.stderr.startswith("usage:")
