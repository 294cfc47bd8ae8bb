"""Kernels where Triton makes a constant of a number."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compiling import run_python

pytest.importorskip("triton", reason="triton is not installed")


@pytest.mark.compile
@pytest.mark.slow
def test_every_kernel_compiles_where_sizes_are_one(tmp_path: Path) -> None:
    said = run_python(tmp_path, "-m", "tests.triton_common.lowered")
    *failed, summary = said.strip().splitlines()
    assert not any(failed), "\n".join(failed)
    assert int(summary.split()[0]) >= 29
