"""The CUDA bindings without a GPU: compiled for the CPU, their kernels run in the emulator.

See csrc/tests/emulator.h. The build is kept in ``build/``, so that only the first takes its
time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.build_cases import built

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


# A test file imports both fixtures; the session's remembers a failed build too.
@pytest.fixture(scope="session")
def loaded() -> None:
    """The library is loaded: ``torch.ops.ocvtp_emulated``."""
    tree = built("emulated", "_C_emulated", "-DOCVTP_EMULATED=ON")
    torch.ops.load_library(tree / "_C_emulated.abi3.so")


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
