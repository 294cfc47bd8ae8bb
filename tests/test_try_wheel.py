"""scripts/try_wheel.py: what an installed wheel is tested beside."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.build_cases import ROOT, load_script


@pytest.fixture
def script() -> Any:
    return load_script("try_wheel")


def test_the_package_is_not_there_and_the_rest_is(script: Any, tmp_path: Path) -> None:
    script.copy_rest(tmp_path / "rest")
    there = {path.name for path in (tmp_path / "rest").iterdir()}
    assert "ocvtp_kernels" not in there
    assert {"tests", "bench", "pyproject.toml", "README.md", "constraints.txt"} <= there
    assert there >= {name for name in script.FOLDERS if (ROOT / name).exists()}


def test_programs_are_found_but_compilers_are_not(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    hidden = ["c++", "g++-12", "x86_64-linux-gnu-gcc", "cc", "clang", "clang++-19", "nvcc", "ninja"]
    for name in (*hidden, "ncc", "gcc-ranlib", "git"):
        program = tmp_path / "own" / name
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "own"), "/nonexistent"]))
    path = script.without_compilers(tmp_path / "bin")
    for name in hidden:
        assert shutil.which(name) and shutil.which(name, path=path) is None, name
    assert all(shutil.which(name, path=path) for name in ("ncc", "gcc-ranlib", "git"))


@pytest.mark.checkout
def test_pytest_runs_on_what_is_installed(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that lies in the checkout, as this Python's, is refused."""
    assert script.main(["--installed", "--options=--version"]) != 0
    monkeypatch.setattr(script, "IMPORTED", "import os; assert os.environ['CXX'] == '/nonexistent'")
    monkeypatch.setattr(script, "PYTEST", ("-c", "import os; print(os.getcwd())"))
    assert script.main(["--installed", "--options=--version"]) == 0
    monkeypatch.setattr(script, "PYTEST", ("-c", "raise SystemExit(3)"))
    assert script.main(["--installed"]) == 3


@pytest.mark.parametrize("given", [[], ["a.whl", "--installed"]])
def test_it_takes_a_wheel_or_what_is_installed(script: Any, given: list[str]) -> None:
    with pytest.raises(SystemExit):
        script.main(given)
