"""Set before anything imports torch, NumPy or Triton: how threads wait, and how kernels run.

Without a GPU, Triton's kernels run in its interpreter.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest

# Test processes share the cores: a thread that waits in a loop takes another process' time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's, which no kernel of ours uses
GPU_NODE = "/dev/nvidiactl"


def gpu_is_here() -> bool:
    """Whether there is a GPU, told before torch is imported; no context is made on it.

    The driver is found and asked as torch will do, so that a stub of it, or a GPU that the
    environment hides, is none; and as after torch, a forked process cannot use the GPU.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        # Then tests fail for want of a driver, and do not pass in the interpreter unnoticed.
        return os.path.exists(GPU_NODE)
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return False
    return count.value > 0


if not gpu_is_here():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    shapes = "random cases that each test of tests/csrc tries"
    parser.addoption("--shapes", type=int, default=200, help=shapes)
    seconds = "how long several threads ask each attached model"
    parser.addoption("--seconds", type=float, default=6.0, help=seconds)


def raise_own_deprecations(warn: Callable[..., None]) -> Callable[..., None]:
    """`warnings.warn`, which raises the deprecations that this package issues, and no others.

    A filter by module would take those that a library blames on its caller for ours.
    """

    @functools.wraps(warn)
    def stricter(
        message: Any, category: Any = None, stacklevel: int = 1, *args: Any, **kwargs: Any
    ) -> None:
        kind = type(message) if isinstance(message, Warning) else category or UserWarning
        issuer = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0]
        if issuer == "ocvtp_kernels" and issubclass(kind, (DeprecationWarning, FutureWarning)):
            raise kind(message)
        warn(message, category, stacklevel + 1, *args, **kwargs)

    return stricter


@pytest.fixture(autouse=True)
def own_deprecations_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deprecation that another library tells of is only in pytest's summary."""
    monkeypatch.setattr(warnings, "warn", raise_own_deprecations(warnings.warn))


@pytest.fixture(autouse=True)
def quick_launches(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests marked ``interpreter`` take Triton's shortest way through it, with checked accesses."""
    if not request.node.get_closest_marker("interpreter"):
        yield
        return

    from ocvtp_kernels.triton_common.launch import interpreting, watch
    from tests.interpreted import run_quickly

    with watch(run_quickly) if interpreting() else nullcontext():
        yield


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that torch leaves uninitialized holds NaN, and large integers."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads wait for each other longer than a tiny model computes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
