"""What the build looks for, what it asks an isolated build to bring, and its sentences."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

from tests.build_cases import load_script

EVERYTHING = ["torch>=2.10", "cmake>=3.20", "ninja"]


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("OCVTP_NATIVE", "OCVTP_TORCH", "CXX", "CUDACXX"):
        monkeypatch.delenv(name, raising=False)
    return load_script("native_tools")


def program(folder: Path, name: str, script: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def beside(tools: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A bare environment that is installed into: its scripts, packages and PATH are here alone."""
    paths = {name: str(tmp_path) for name in ("scripts", "purelib", "platlib")}
    monkeypatch.setattr(sysconfig, "get_path", paths.get)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "pyvenv.cfg").write_text("include-system-site-packages = false\n")
    return tmp_path


def add_torch(folder: Path, version: str, cuda: str | None = None) -> None:
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").touch()
    (folder / "torch" / "version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")


def test_with_a_compiler_alone_the_rest_is_brought_along(tools: ModuleType, beside: Path) -> None:
    program(beside, "c++", "")
    assert tools.requirements() == EVERYTHING


def test_without_a_compiler_nothing_is(tools: ModuleType, beside: Path) -> None:
    assert tools.requirements() == []
    pure = tools.why_pure()
    assert pure.why == "the build found no C++ compiler"
    command = "`OCVTP_NATIVE=1 pip install .`"
    assert pure.mend == f"install a C++ compiler and run {command} in a checkout"
    assert not pure.is_chosen
    assert "pip install -e ." in tools.why_pure(is_editable=True).mend


def test_where_none_are_wanted_nothing_is(
    tools: ModuleType, beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(beside, "c++", "")
    monkeypatch.setenv("OCVTP_NATIVE", "0")
    assert tools.requirements() == []
    pure = tools.why_pure()
    assert pure.is_chosen and "OCVTP_NATIVE=0" in pure.why and "OCVTP_NATIVE=1" in pure.mend


def test_a_compiler_that_is_not_there_is_named(
    tools: ModuleType, beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(beside, "c++", "")
    monkeypatch.setenv("CXX", "/nonexistent")
    assert tools.why_pure().why == "the build found no C++ compiler (CXX=/nonexistent)"


def test_torch_beside_an_isolated_build_is_enough(tools: ModuleType, beside: Path) -> None:
    program(beside, "c++", "")
    add_torch(beside, "2.13.0+cpu", "13.0")
    assert tools.find_torch() == (beside / "torch", "2.13.0+cpu", "13.0")
    assert tools.requirements() == EVERYTHING[1:]


def test_a_folder_of_torch_may_be_chosen(
    tools: ModuleType, beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(beside, "c++", "")
    add_torch(beside, "2.99.0")
    chosen = beside / "chosen"
    chosen.mkdir()
    monkeypatch.setenv("OCVTP_TORCH", str(chosen / "torch"))
    assert tools.find_torch() is None
    assert f"torch 2.10 or newer (OCVTP_TORCH={chosen}/torch)" in tools.why_pure().why
    add_torch(chosen, "2.10.0")
    assert tools.find_torch() == (chosen / "torch", "2.10.0", None)
    # A relative one is the checkout's, wherever an installer runs the build.
    monkeypatch.setenv("OCVTP_TORCH", os.path.relpath(chosen / "torch", tools.ROOT))
    monkeypatch.chdir(beside)
    assert tools.find_torch().version == "2.10.0"


def test_an_old_torch_is_none(tools: ModuleType, beside: Path) -> None:
    program(beside, "c++", "")
    add_torch(beside, "2.9.1")
    assert tools.find_torch() is None and tools.requirements() == EVERYTHING
    pure = tools.why_pure()
    assert pure.why.startswith("the build found no torch 2.10 or newer, no cmake 3.20 or newer, no")
    assert pure.mend.endswith("without --no-build-isolation")


def test_tools_that_do_not_run_or_are_old_are_passed_over(
    tools: ModuleType, beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a script of pip's whose package an isolated build does not see.
    program(beside, "cmake", "exit 1")
    program(beside, "ninja", "exit 1")
    program(beside, "c++", "")
    add_torch(beside, "2.13.0")
    others = beside / "others"
    others.mkdir()
    monkeypatch.setenv("PATH", f"{others}{os.pathsep}{beside}")
    old = program(others, "cmake", "echo cmake version 3.19.8")
    assert tools.requirements() == EVERYTHING[1:]
    Path(old).unlink()
    new = program(others, "cmake", "echo cmake version 4.1.0")
    ninja = program(others, "ninja", "echo 1.11.1.git.kitware.jobserver-1")
    tools._version.cache_clear()
    assert (tools.find_cmake(), tools.find_ninja()) == (new, ninja)
    assert tools.requirements() == [] and tools.why_pure() is None


def test_the_line_that_tells_is_found(tools: ModuleType) -> None:
    said = "[1/2] Building\nx.cpp:3:10: fatal error: Python.h: No such file\nninja: build stopped\n"
    assert tools.first_error(said) == "x.cpp:3:10: fatal error: Python.h: No such file"
    said = "-- The CXX\nCMake Error at lists:3 (project):\n  No compiler\n  here.\n\nMore\n"
    assert tools.first_error(said) == "CMake Error at lists:3 (project): No compiler here."
    said += "  y.cpp: error: no\n"
    assert tools.first_error(said) == "y.cpp: error: no"
    assert tools.first_error("ld returned 1\n") == "ld returned 1"
