"""A stand-in for the CUDA driver behind Triton's launches: kernels are compiled, and none runs.

Triton's host code runs as with a GPU, except that the last step records the launch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple
from unittest import mock

import triton
from torch import Tensor
from triton.compiler import CompiledKernel

from bench.compiled.binaries import StandIn

SPECIALIZED = 16  # bytes; Triton compiles other code for pointers that are multiples of it


class Given(NamedTuple):
    """A launch as the driver gets it, without its hooks."""

    grid: tuple[int, int, int]
    stream: int
    kernel: CompiledKernel
    metadata: Any
    arguments: tuple[Any, ...]


class Driver:
    """Records the launches that the driver would get, while ``launches`` is a list."""

    def __init__(self) -> None:
        self.launches: list[Given] | None = None

    def run(self, *given: Any) -> None:
        """Takes what ``CompiledKernel.run`` takes, and calls its hooks."""
        x, y, z, stream, kernel, metadata, info, enter, leave, *arguments = given
        if enter is not None:
            enter(info)
        if self.launches is not None:
            self.launches.append(Given((x, y, z), stream, kernel, metadata, tuple(arguments)))
        if leave is not None:
            leave(info)

    def given(self, call: Any) -> tuple[list[Given], Any]:
        """The launches of a call, whose tensors stay allocated, and what it returns."""
        self.launches = []
        try:
            result = call()
            return self.launches, result
        finally:
            self.launches = None


@contextmanager
def standing_in(capability: int) -> Iterator[Driver]:
    """Within the block Triton sees a GPU of this capability, and launches take CPU tensors.

    Driver and kernels stay changed, so use a new process.
    """
    driver = Driver()

    def bind(kernel: Any) -> None:
        if kernel.module is None:
            kernel.module, kernel.function, kernel._run = 1, kernel, driver.run

    triton.runtime.driver.set_active(StandIn(capability))
    with mock.patch.object(CompiledKernel, "_init_handles", bind):
        yield driver


def difference(
    ordinary: Sequence[Given],
    prepared: Sequence[Given],
    inputs: Sequence[Tensor],
    outputs: Sequence[tuple[Tensor, Tensor]],
) -> str:
    """The first difference between two lists of launches, or ""; scratch may be elsewhere.

    Args:
        ordinary: launches on tensors.
        prepared: launches on addresses.
        inputs: of both.
        outputs: what the first returned, and the second.
    """
    if len(ordinary) != len(prepared):
        return f"{len(ordinary)} launches and {len(prepared)}"
    moved = {_start(each): 0 for each in inputs}
    moved |= {_start(one): other.data_ptr() - one.data_ptr() for one, other in outputs}
    sizes: dict[int, int] = {}
    for index, (one, other) in enumerate(zip(ordinary, prepared, strict=True)):
        name = f"launch {index}, {one.kernel.name}"
        if one[:4] != other[:4] or one.kernel is not other.kernel:
            return f"{name}: {one[:4]} and {other[:4]}"
        names = one.kernel.src.fn.arg_names
        if not len(names) == len(one.arguments) == len(other.arguments):
            return f"{name}: {len(one.arguments)} arguments and {len(other.arguments)}"
        for argument, a, b in zip(names, one.arguments, other.arguments, strict=True):
            if not isinstance(a, Tensor):
                same = type(a) is type(b) and a == b
            elif not a.data_ptr():
                same = b == 0
            else:
                sizes[_start(a)] = a.untyped_storage().nbytes()
                same = moved.setdefault(_start(a), b - a.data_ptr()) == b - a.data_ptr()
                same = same and (b - a.data_ptr()) % SPECIALIZED == 0
            if not same:
                return f"{name}: {argument} is {a} and {b}"
    ends = sorted((start + moved[start], start + moved[start] + sizes[start]) for start in sizes)
    if any(end > start for (_, end), (start, _) in pairwise(ends)):
        return "memory of two tensors overlaps"
    return ""


def _start(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
