"""Commands that compile kernels, which Triton's interpreter does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.build_cases import ROOT

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler comes for Linux")


def run_python(cache: Path, *arguments: str, status: int = 0, **environment: str) -> str:
    """What Python prints in the repository, complaints too where it is to end with another status.

    Args:
        cache: Triton's cache.
        arguments: of Python.
        status: how it has to end.
        environment: beside this process', less Triton's interpreter.
    """
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**kept, "TRITON_CACHE_DIR": str(cache), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr if status else done.stdout
