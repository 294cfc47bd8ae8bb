"""Kernels where Triton makes a constant of a number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).parents[2]


@pytest.mark.compile
@pytest.mark.slow
def test_every_kernel_compiles_where_sizes_are_one() -> None:
    command = [sys.executable, "-m", "tests.triton_common.lowered"]
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=kept, check=False)
    assert done.returncode == 0, done.stderr
    *failed, summary = done.stdout.strip().splitlines()
    assert not any(failed), "\n".join(failed)
    assert int(summary.split()[0]) >= 29
