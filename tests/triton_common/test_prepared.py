"""Prepared launches: what the driver gets, and what is never prepared.

Kernels are compiled in a process of its own, since here they may run in Triton's interpreter.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

import triton
import triton.language as tl

from ocvtp_kernels.triton_common.launch import Launch, interpreting, launch, watch
from ocvtp_kernels.triton_common.prepared import prepared
from tests.compiling import on_linux, run_python

INTERPRETED = pytest.mark.skipif(not interpreting(), reason="Triton compiles here")


@pytest.mark.compile
@on_linux
def test_prepared_launches(tmp_path: Path) -> None:
    tests = "tests/triton_common/prepared_compiled.py"
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", tests)
    run_python(tmp_path, *command, TRITON_INTERPRET="0")


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
