"""Launching Triton kernels: one door, so that every launch can be watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import triton

from ocvtp_kernels.triton_common.archs import arch_of


class Launch(NamedTuple):
    """One launch: which kernel, how many programs, its arguments and compile options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]


REGISTERS = 65536  # of a multiprocessor
MOST_REGISTERS = 255  # of a thread
DEPENDENT = 90  # the oldest capability with programmatic dependent launch
Watcher = Callable[[Launch], None]
Recorder = Callable[[Launch, Any], None]  # of a launch, and the kernel that Triton compiled for it
_watcher: ContextVar[Watcher | None] = ContextVar("ocvtp_launch_watcher", default=None)
_recorder: ContextVar[Recorder | None] = ContextVar("ocvtp_launch_recorder", default=None)


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], **options: int | bool
) -> None:
    """Runs ``kernel`` on the current stream; an empty grid runs nothing.

    A kernel with a constant ``PDL`` is a programmatic dependent launch where the GPU has them.

    Args:
        kernel: a ``triton.jit`` function.
        grid: programs per axis.
        arguments: all its arguments by name, constants too, but ``PDL``.
        options: ``num_warps``, ``num_stages`` and other compile options.
    """
    if 0 in grid:
        return
    # Else ptxas may spill a little to fit one more program on the multiprocessor.
    options["maxnreg"] = min(MOST_REGISTERS, REGISTERS // (32 * options["num_warps"]))
    # Said outright because Triton's default changes between versions.
    options["enable_fp_fusion"] = True
    if "PDL" in kernel.arg_names:
        dependent = _dependent(arguments)
        arguments = {**arguments, "PDL": dependent}
        if dependent:
            options["launch_pdl"] = True
    watcher, recorder = _watcher.get(), _recorder.get()
    compiled = None
    if watcher is not None:
        watcher(Launch(kernel, grid, arguments, options))
    else:
        compiled = kernel[grid](**arguments, **options)
    if recorder is not None:
        recorder(Launch(kernel, grid, arguments, options), compiled)


def _dependent(arguments: dict[str, Any]) -> bool:
    """Whether the GPU of these arguments has programmatic dependent launch."""
    if interpreting():
        return False
    device = next(each.device for each in arguments.values() if isinstance(each, torch.Tensor))
    return arch_of(device).capability >= DEPENDENT


@contextmanager
def watch(watcher: Watcher) -> Iterator[None]:
    """Within the block launches go to ``watcher`` instead of to the device."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


@contextmanager
def record(recorder: Recorder) -> Iterator[None]:
    """Within the block ``recorder`` is told of every launch, once it is on its way."""
    token = _recorder.set(recorder)
    try:
        yield
    finally:
        _recorder.reset(token)


def observed() -> bool:
    """Whether somebody wants to see every launch, by `watch` or `record`."""
    return _watcher.get() is not None or _recorder.get() is not None


def interpreting() -> bool:
    """Whether Triton runs kernels in its interpreter, which takes tensors on the CPU."""
    return bool(triton.knobs.runtime.interpret)


def dot_precision(dtype: torch.dtype) -> str:
    """How a float32 dot rounds its operands: TF32 only where torch allows it."""
    if dtype != torch.float32:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def unit_stride(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor``, or a copy where neighbours of its last dimension are not neighbours in memory."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
