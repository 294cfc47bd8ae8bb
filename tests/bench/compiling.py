"""Commands that compile kernels, which Triton's interpreter does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.build_cases import ROOT

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler comes for Linux")


def run_python(cache: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Status and output of Python in the repository, Triton's cache in ``cache``."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**kept, "TRITON_CACHE_DIR": str(cache), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout
