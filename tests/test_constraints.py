"""constraints.txt: exact versions of all that is installed, and what holds beside a torch."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.build_cases import ROOT, load_script

FILE = ROOT / "constraints.txt"


@pytest.fixture
def constraints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, on a copy of the file."""
    script = load_script("constraints")
    for path in (FILE, ROOT / "pyproject.toml"):
        (tmp_path / path.name).write_text(path.read_text())
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "FILE", tmp_path / FILE.name)
    return script


def beside(script: Any, monkeypatch: pytest.MonkeyPatch, requires: list[str]) -> set[str]:
    """Names of the lines that are left beside a torch that requires these."""
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: requires)
    return {script.name_of(pin) for pin in script.beside_torch().splitlines()}


def test_every_line_is_an_exact_version() -> None:
    pins = [line for line in FILE.read_text().splitlines() if not line.startswith("#")]
    assert len(pins) > 100
    for pin in pins:
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; .+)?", pin), pin


def test_all_that_is_named_in_pyproject_is_there(constraints: Any) -> None:
    pinned = {constraints.name_of(line) for line in FILE.read_text().splitlines() if line[0] != "#"}
    for requirement in importlib.metadata.requires("ocvtp-kernels") or []:
        assert constraints.name_of(requirement) in pinned | {"ocvtp-kernels"}
    assert {"setuptools", "ninja", "cmake"} <= pinned


def test_a_torch_for_the_cpu_leaves_all_but_itself(
    constraints: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_of_them = beside(constraints, monkeypatch, [])
    assert "triton" in all_of_them and "torch" not in all_of_them
    assert beside(constraints, monkeypatch, ["sympy>=1.13", "triton!=3.0"]) == all_of_them


def test_what_torch_holds_to_a_version_is_left_to_it(
    constraints: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    requires = ["triton==3.7.1; platform_system == 'Linux'", "setuptools<82", "Sympy>=1.13"]
    left_out = beside(constraints, monkeypatch, []) - beside(constraints, monkeypatch, requires)
    assert left_out == {"triton", "setuptools"}


def test_renewing_leaves_out_the_libraries_of_cuda_builds(
    constraints: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = "nvidia-cublas==13.1\nnvidia-cuda-nvrtc-cu12==12.9\ntorch==2.13.0\ntriton==3.9.0\n"

    def compile_pins(command: list[str], cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
        beside = (cwd / "beside.txt").read_text()
        assert beside.startswith("torch==2.13.0\n") and "setuptools-scm" in beside
        assert "--universal" in command
        return subprocess.CompletedProcess(command, 0, stdout=resolved)

    monkeypatch.setattr(subprocess, "run", compile_pins)
    constraints.renew("torch==2.13.0")
    header, *pins = constraints.FILE.read_text().splitlines()
    assert header.startswith("#") and pins == resolved.splitlines()[1:]


def test_a_failure_to_resolve_leaves_the_file(
    constraints: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    before = constraints.FILE.read_text()
    with pytest.raises(subprocess.CalledProcessError):
        constraints.renew("torch==2.13.0")
    with pytest.raises(SystemExit, match="expected an exact version"):
        constraints.renew("torch>=2.13")
    assert constraints.FILE.read_text() == before
