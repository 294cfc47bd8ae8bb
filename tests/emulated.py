"""The CUDA bindings without a GPU: compiled for the CPU, their kernels run in the emulator.

See csrc/tests/emulator.h. The build is kept in ``build/emulated``, so that only the first takes its
time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor

from tests.build_cases import ROOT, said_by, tools_or_skip

NAN = float("nan")


class OnGpu(Tensor):
    """A CPU tensor that says in Python that it is on a GPU: the package goes the GPU's way."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


def on_gpu(value: Any) -> Any:
    """The tensors in this value as `OnGpu`."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(on_gpu, value))
    return value.as_subclass(OnGpu) if isinstance(value, Tensor) else value


@cache
def build() -> Path:
    """Builds the library, if its sources changed; skips where that cannot be."""
    if sys.platform != "linux":
        pytest.skip("the emulator's fibers are Linux's")
    cmake, ninja, _ = tools_or_skip("cmake", "ninja", "c++")
    tree = ROOT / "build" / "emulated"
    configure = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DOCVTP_EMULATED=ON"]
    configure = [cmake, "-S", ROOT, "-B", tree, *configure]
    tree.mkdir(parents=True, exist_ok=True)
    # Test processes that run side by side share the tree.
    with FileLock(tree / "lock"):
        said_by([*configure, f"-DPython_EXECUTABLE={sys.executable}"], ROOT)
        said_by([cmake, "--build", tree, "--target", "_C_emulated"], ROOT)
    return tree / "_C_emulated.abi3.so"


# A test file imports both fixtures; the session's remembers a failed build too.
@pytest.fixture(scope="session")
def loaded() -> None:
    """The library is loaded: ``torch.ops.ocvtp_emulated``."""
    torch.ops.load_library(build())


@pytest.fixture(name="emulated")
def emulated_ops(loaded: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The emulated ops, and that the package takes them for ``torch.ops.ocvtp_native``."""
    monkeypatch.setattr(torch.ops, "ocvtp_native", torch.ops.ocvtp_emulated)
    return torch.ops.ocvtp_emulated


def views(x: Tensor) -> Iterator[Tensor]:
    """Float tensors ``[..., R, C]`` equal to this one, laid out in other ways, NaN around them."""
    yield x
    yield F.pad(x, (0, 0, 1, 0), value=NAN)[..., 1:, :]
    yield F.pad(x, (1, 2), value=NAN)[..., 1:-2]
    yield F.pad(x.mT, (1, 0), value=NAN)[..., 1:].mT
    if x.dim() > 2:
        yield F.pad(x.transpose(0, -2), (8, 8), value=NAN)[..., 8:-8].transpose(0, -2)
