"""What the tests that build need: where the tools are, and commands that say all when they fail."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
SANITIZERS = "address,undefined"
# Under `python -m tests.sanitized` what tests build has the sanitizers too.
SANITIZED = hasattr(ctypes.CDLL(None), "__asan_init")


def tools_or_skip(*names: str) -> list[str]:
    """The paths of these programs, of this Python's environment first; skips without one.

    CXX, where set, is the only C++ compiler, as for CMake.
    """
    places = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    found = []
    for name in names:
        name = os.environ.get("CXX", name) if name == "c++" else name
        path = shutil.which(name, path=places)
        if path is None:
            pytest.skip(f"{name} is not installed")
        found.append(path)
    return found


def load_script(name: str) -> ModuleType:
    """One of ``scripts/``, which are no package, as a module."""
    path = ROOT / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def built(name: str, target: str, *options: str) -> Path:
    """The tree ``build/<name>-<Python>`` with this target up to date; skips where none can be."""
    if sys.platform != "linux":
        pytest.skip("the emulator's fibers are Linux's")
    cmake, ninja, _ = tools_or_skip("cmake", "ninja", "c++")
    # CMake keeps what it found of one Python, so each has a tree.
    name = f"{name}-{sys.implementation.cache_tag}"
    tree = ROOT / "build" / (f"{name}-sanitized" if SANITIZED else name)
    sanitize = f"-DOCVTP_SANITIZE={SANITIZERS if SANITIZED else ''}"
    configure = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", sanitize, *options]
    tree.mkdir(parents=True, exist_ok=True)
    # Test processes that run side by side share the tree.
    with FileLock(tree / "lock"):
        python = f"-DPython_EXECUTABLE={sys.executable}"
        said_by([cmake, "-S", ROOT, "-B", tree, *configure, python], ROOT)
        said_by([cmake, "--build", tree, "--target", target], ROOT)
    return tree


def built_tests(target: str) -> Path:
    """The tree of csrc/tests with this target up to date."""
    pytest.importorskip("pybind11")
    return built("tests", target, "-DOCVTP_TESTS=ON")


def said_by(command: Sequence[str | Path], cwd: Path, **environment: str) -> str:
    """What a command prints; it has to succeed. Nothing is preloaded into it."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "LD_PRELOAD": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout
