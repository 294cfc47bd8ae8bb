"""scripts/matrix.py: a row is tried, fails or cannot be tried, and one table says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.build_cases import load_script

# A Python that makes environments of itself, and whose tests pass by the version of transformers.
PYTHON = r"""#!/usr/bin/env bash
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *" install torch=="*) [[ "$*" != *torch==9.* ]] ;;
  *" install "*transformers*)
    echo "$OCVTP_NATIVE $*" >>TOLD; echo "$*" >version; [[ "$*" != *transformers==9.* ]] ;;
  *" pytest "*)
    while [ "$1" != --junitxml ]; do shift; done
    failed=3; grep -q transformers==1 version && failed=0
    counts="tests='20' failures='$failed' errors='0' skipped='5'"
    echo "<testsuites><testsuite $counts/></testsuites>" >"$2"
    [ "$failed" = 0 ] ;;
  *loads*) echo 'FACTS' ;;
  *) ;;
esac
"""
FACTS = {
    "torch": "2.13.0+cpu",
    "triton": "3.9.0",
    "transformers": "1.2.3",
    "python": "3.11.7",
    "cuda": None,
    "loads": {"cpu": None, "cuda": "not built"},
}


LINE = "a\n<!-- tested:start -->\nold\n<!-- tested:end -->\nb\n"


@pytest.fixture
def matrix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The script, with stand-ins for Pythons; ``facts`` is what an environment tells."""
    script = load_script("matrix")

    def find_python(version: str) -> str | None:
        path = tmp_path / "python"
        path.write_text(
            PYTHON.replace("'FACTS'", repr(json.dumps(script.facts))).replace(
                "TOLD", str(tmp_path / "told")
            )
        )
        path.chmod(0o755)
        return str(path) if version == "3.11" else None

    script.facts = FACTS
    monkeypatch.setattr(script, "find_python", find_python)
    monkeypatch.setattr(script, "copy_checkout", lambda target: target.mkdir(exist_ok=True))
    return script


def run(script: Any, folder: Path, *rows: Any, readme: Path | None = None, more: str = "") -> int:
    script.ROWS = rows
    options = ["--output", str(folder / "out"), *more.split()]
    status: int = script.main(options + (["--readme", str(readme)] if readme else []))
    return status


def test_a_row_that_passes(matrix: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # What an earlier run left there must not be taken for this one's.
    (tmp_path / "out" / "good").mkdir(parents=True)
    (tmp_path / "out" / "good" / "report.xml").write_text("<testsuites/>")
    row = matrix.Row("good", "3.11", "2.13.0", "1.2.3", "3.9.0", ("numpy<2.4",), ("tests/vlm",))
    assert run(matrix, tmp_path, row) == 0
    titles, line = capsys.readouterr().out.splitlines()[-2:]
    assert titles.split() == [*matrix.WIDTHS, "tests"]
    assert line.split()[:6] == ["good", "3.11.7", "2.13.0+cpu", "3.9.0", "1.2.3", "_C"]
    assert line.endswith("passed: 15 passed, 0 failed, 5 skipped")
    (told,) = (tmp_path / "told").read_text().splitlines()
    assert told.startswith("1 ") and told.endswith("transformers==1.2.3 triton==3.9.0 numpy<2.4")


@pytest.mark.parametrize(
    ("changes", "facts", "status", "said"),
    [
        ({"transformers": "2.0.0"}, {}, 1, "failed: 12 passed, 3 failed, 5 skipped, tests fail"),
        ({"transformers": "9.9.9"}, {}, 1, "failed: does not install; see"),
        ({}, {"loads": {"cpu": "no symbol", "cuda": None}}, 1, "failed: _C does not load: no symb"),
        ({"torch": "9.9.9"}, {}, 0, "not tried: torch==9.9.9 cannot be installed; see"),
        ({"python": "3.99"}, {}, 0, "not tried: there is no Python 3.99 here"),
    ],
)
def test_a_row_that_does_not(
    matrix: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    facts: dict[str, Any],
    status: int,
    said: str,
) -> None:
    matrix.facts = FACTS | facts
    row = matrix.Row("bad", "3.11", "2.13.0", "1.2.3")._replace(**changes)
    readme = tmp_path / "README.md"
    readme.write_text(LINE)
    assert run(matrix, tmp_path, row, readme=readme) == status
    assert said in capsys.readouterr().out.splitlines()[-1]
    assert readme.read_text() == LINE
    assert run(matrix, tmp_path, row, more="--strict") == 1


def test_the_readme_names_what_passed(matrix: Any, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(LINE)
    good = matrix.Row("good", "3.11", "2.13.0", "1.2.3")
    bad = good._replace(name="bad", transformers="2.0.0")
    assert run(matrix, tmp_path, good, bad, readme=readme) == 1
    line = "Tested with Python 3.11; torch 2.13; Triton 3.9; transformers 1.2 (`make matrix`)."
    assert readme.read_text() == LINE.replace("old", line)


def test_versions_are_listed_in_order(matrix: Any) -> None:
    passed = [
        matrix.Result("passed", "", FACTS | {"torch": torch})
        for torch in ("2.13.0+cpu", "2.9.0", "2.10.1")
    ]
    line = matrix.tested_line(dict(enumerate(passed)))
    assert "torch 2.9, 2.10 and 2.13;" in line


def test_a_row_that_is_not_known(matrix: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        matrix.main(["--rows", "nothing"])
    assert "expected some of oldest, torch-2.11" in capsys.readouterr().err


def test_a_readme_without_the_line_is_refused_at_once(
    matrix: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("nothing")
    with pytest.raises(SystemExit):
        run(matrix, tmp_path, readme=readme)
    assert "--readme: expected a line <!-- tested:start -->" in capsys.readouterr().err
