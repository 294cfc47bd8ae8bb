"""Prepared launches: what the driver gets, and what is never prepared.

Kernels are compiled in a process of its own, since here they may run in Triton's interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

import triton
import triton.language as tl

from bench.results import ROOT
from ocvtp_kernels.triton_common.launch import Launch, interpreting, launch, watch
from ocvtp_kernels.triton_common.prepared import prepared

INTERPRETED = pytest.mark.skipif(not interpreting(), reason="Triton compiles here")


@pytest.mark.compile
@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler comes for Linux")
def test_prepared_launches(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/triton_common/prepared_compiled.py",
        ],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@triton.jit
def copy_kernel(x, out, PDL: tl.constexpr):
    tl.store(out, tl.load(x))


@prepared
def copy(x: Tensor) -> Tensor:
    """Its argument, by a kernel."""
    out = torch.empty_like(x)
    launch(copy_kernel, (1,), {"x": x, "out": out}, num_warps=1)
    return out


@INTERPRETED
@pytest.mark.interpreter
def test_the_interpreter_runs_every_launch() -> None:
    for value in (1.0, 2.0):
        assert copy(torch.tensor([value])).item() == value
    assert copy.kinds() == 0


@INTERPRETED
def test_the_interpreter_has_no_dependent_launch() -> None:
    launches: list[Launch] = []
    with watch(launches.append):
        copy(torch.zeros(1))
    assert launches[0].arguments["PDL"] is False and "launch_pdl" not in launches[0].options


def test_a_prepared_function_is_still_told_by_its_name() -> None:
    assert copy.__name__ == "copy" and copy.__doc__ == "Its argument, by a kernel."
