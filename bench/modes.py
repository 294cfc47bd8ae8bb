"""Ways in which people run an op, as part of a workload: `Workload.mode`.

An op's file in `bench.ops` may add ways of its own (`OpBench.ways`), such as unfrozen weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ocvtp_kernels.backends import use_backend

Context = Callable[[str], AbstractContextManager[Any]]  # of a device type
Function = Callable[..., Any]
DEFAULT = "no_grad"


def _autocast(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, dtype=torch.bfloat16)


@contextmanager
def _autocast_without_grad(device: str) -> Iterator[None]:
    with torch.no_grad(), _autocast(device):
        yield


def _without_native(call: Function) -> Function:
    def run(*inputs: Any) -> Any:
        with use_backend("reference"):
            return call(*inputs)

    return run


@dataclass(frozen=True)
class Mode:
    """One way to run an op, for all variants alike.

    Attributes:
        forward: within which a call runs.
        backward: within which the forward pass runs whose backward pass is timed.
        ours: our call, changed.
        fills_caches: other work fills the caches before every call.
    """

    forward: Context = lambda _: torch.no_grad()
    backward: Context = lambda _: nullcontext()
    has_backward: bool = True
    ours: Callable[[Function], Function] = lambda call: call
    fills_caches: bool = False


MODES = {
    DEFAULT: Mode(),
    "inference_mode": Mode(lambda _: torch.inference_mode(), has_backward=False),
    "autocast": Mode(_autocast_without_grad, _autocast),
    "busy": Mode(fills_caches=True),
    "without_native": Mode(ours=_without_native),
}


def mode_of(name: str) -> Mode:
    """The mode of this name; an op's own ways run in the default one."""
    return MODES.get(name, MODES[DEFAULT])


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Within the block torch uses so many threads; None leaves their number."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
