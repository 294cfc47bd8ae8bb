"""Launching Triton kernels: one door, so that every launch can be watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import triton


class Launch(NamedTuple):
    """One launch: which kernel, how many programs, its arguments and compile options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]


REGISTERS = 65536  # of a multiprocessor
MOST_REGISTERS = 255  # of a thread
Watcher = Callable[[Launch], None]
_watcher: ContextVar[Watcher | None] = ContextVar("ocvtp_launch_watcher", default=None)


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], **options: int | bool
) -> None:
    """Runs ``kernel`` on the current stream; an empty grid runs nothing.

    Args:
        kernel: a ``triton.jit`` function.
        grid: programs per axis.
        arguments: all its arguments by name, constants too.
        options: ``num_warps``, ``num_stages`` and other compile options.
    """
    if 0 in grid:
        return
    if options["num_warps"] >= 8:
        # Else ptxas may spill a little to fit a second program on the multiprocessor.
        options["maxnreg"] = min(MOST_REGISTERS, REGISTERS // (32 * options["num_warps"]))
    # Said outright because Triton's default changes between versions.
    options["enable_fp_fusion"] = True
    watcher = _watcher.get()
    if watcher is not None:
        watcher(Launch(kernel, grid, arguments, options))
    else:
        kernel[grid](**arguments, **options)


@contextmanager
def watch(watcher: Watcher) -> Iterator[None]:
    """Within the block launches go to ``watcher`` instead of to the device."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


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
