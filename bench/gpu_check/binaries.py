"""Triton binaries that a GPU machine will need, listed in a file without a GPU."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ocvtp_kernels.files import atomic_write

ALIGNMENT = 16  # bytes: Triton specializes pointers and integers that are multiples of it


class Binary(NamedTuple):
    """What identifies a binary, in a form that JSON can hold.

    Attributes:
        kernel: ``module:name``.
        arguments: by name; a tensor is ``[dtype, aligned]``, anything else its value.
        options: of the compiler.
        stages: that launch it.
    """

    kernel: str
    arguments: dict[str, Any]
    options: dict[str, Any]
    stages: list[str]

    def tensors_and_values(self) -> dict[str, Any]:
        """The arguments as Triton takes them."""
        return {
            name: _tensor(*value) if isinstance(value, list) else value
            for name, value in self.arguments.items()
        }


def _tensor(dtype: str, aligned: bool) -> Tensor:
    torch_dtype: torch.dtype = getattr(torch, dtype)
    start = 0 if aligned else max(1, torch_dtype.itemsize)
    return torch.empty(2 * ALIGNMENT, dtype=torch.uint8)[start : start + ALIGNMENT].view(
        torch_dtype
    )


def written(value: Any) -> Any:
    """An argument as a `Binary` has it."""
    if isinstance(value, Tensor):
        return [str(value.dtype).removeprefix("torch."), value.data_ptr() % ALIGNMENT == 0]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a kernel's argument: expected a tensor, number or string, got {value!r}")


def write(path: Path, arch: int, binaries: Iterable[Binary]) -> None:
    """Writes a list of binaries atomically."""
    top = {"chip": arch, "triton": triton.__version__, "binaries": [b._asdict() for b in binaries]}
    atomic_write(path, json.dumps(top) + "\n")


def read(path: Path) -> tuple[int, list[Binary]]:
    """The architecture and the binaries of a list.

    Raises:
        ValueError: it is none, or one for another Triton.
    """
    top = json.loads(path.read_text(encoding="utf-8"))
    if top["triton"] != triton.__version__:
        raise ValueError(f"{path}: for Triton {top['triton']}, this is {triton.__version__}")
    return top["chip"], [Binary(**each) for each in top["binaries"]]


def merged(lists: Iterable[Iterable[Binary]]) -> list[Binary]:
    """One list of several; a binary of two is launched by the stages of both."""
    by_key: dict[str, Binary] = {}
    for binary in (one for each in lists for one in each):
        key = json.dumps([binary.kernel, binary.arguments, binary.options], sort_keys=True)
        first = by_key.setdefault(key, binary._replace(stages=[]))
        first.stages.extend(stage for stage in binary.stages if stage not in first.stages)
    return list(by_key.values())
