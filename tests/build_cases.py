"""What the tests that build need: where the tools are, and commands that say all when they fail."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


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


def said_by(command: Sequence[str | Path], cwd: Path, **environment: str) -> str:
    """What a command prints; it has to succeed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout
