"""Which backend runs an op on given tensors, and the sentence why another does not.

A backend is one implementation of an op: "reference" is plain PyTorch on any device, "cpu"
accumulates in float32 or wider and stores less, "triton" and "cuda" are GPU kernels. An op's
implementations are registered here; every call selects one by its real tensors.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context, ContextVar
from functools import cache
from typing import Any, NamedTuple

import torch

from ocvtp_kernels import native
from ocvtp_kernels.triton_common.archs import OLDEST, capability_of

Function = Callable[..., Any]


class Kernel(NamedTuple):
    """One implementation of an op."""

    run: Function
    unsupported: Function | None = None  # of the op's arguments: why it cannot take them, or None


BACKENDS = ("reference", "cpu", "triton", "cuda")
# Best first: the first that has a kernel which takes the tensors runs.
PREFERENCE = ("triton", "cuda", "cpu", "reference")
GPU_KERNELS = ("triton", "cuda")
DEVICES = {"cpu": ("cpu",), "triton": ("cuda",), "cuda": ("cuda",)}

_kernels: dict[str, dict[str, Kernel]] = {}
_override: ContextVar[str | None] = ContextVar("ocvtp_backend", default=None)


Overrides = dict[object, str]  # by the `use_backend` block that forces


class _Thread(threading.local):
    """The blocks open in a thread, the last one last; backward passes read them from another."""

    def __init__(self) -> None:
        self.overrides: Overrides = {}


_thread = _Thread()


class Remembered(NamedTuple):
    """What an op's backward pass needs to know of its forward pass.

    Attributes:
        forced: the backend that was forced.
        overrides: of its thread; none where backward passes run in the thread that calls them.
    """

    forced: str | None
    overrides: Overrides


class BackendUnavailable(RuntimeError):
    """The backend asked for cannot run here; the message says why."""


def register(op: str, backend: str, kernel: Kernel) -> None:
    """Makes ``kernel`` the implementation of ``ocvtp::op`` on ``backend``."""
    _kernels.setdefault(op, {})[backend] = kernel


def registered_ops() -> tuple[str, ...]:
    """Names of all ops that have an implementation, sorted."""
    return tuple(sorted(_kernels))


def unsupported_reason(op: str, backend: str, device: str) -> str | None:
    """The sentence why ``backend`` does not run ``ocvtp::op`` on tensors of ``device``, or None.

    Args:
        op: name without the namespace, e.g. "prune".
        backend: one of `BACKENDS`.
        device: a device, "cpu", "cuda" or "cuda:1".
    """
    if backend not in _kernels.get(op, {}):
        return f"ocvtp::{op} has no {backend} kernel in this version"
    kind, index = torch.device(device).type, torch.device(device).index
    devices = DEVICES.get(backend)
    if devices is not None and kind not in devices:
        return f"the {backend} backend takes tensors on {' or '.join(devices)}, not on {kind}"
    if backend == "triton":
        return _no_triton_reason(index)
    return _no_cuda_reason(index) if backend == "cuda" else None


@cache
def _no_triton_reason(index: int | None) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if torch.cuda.is_available():
        capability = capability_of(torch.cuda.current_device() if index is None else index)
        if capability < OLDEST:
            return f"the triton backend needs sm_{OLDEST} or newer, this is sm_{capability}"
    return None


@cache
def _no_cuda_reason(index: int | None) -> str | None:
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    reason = native.missing_reason("cuda")
    if reason is not None:
        return reason
    info = native.build_info()
    if not isinstance(info, str):
        built = sorted(int(name.replace(".", "")) for name in info.cuda_architectures)
        capability = capability_of(torch.cuda.current_device() if index is None else index)
        # Code for sm_80 runs on later ones of its generation; the newest is there as PTX too, which
        # the driver compiles for anything newer.
        runs = any(arch // 10 == capability // 10 and arch <= capability for arch in built)
        if built and not runs and capability < built[-1]:
            archs = ", ".join(f"sm_{arch}" for arch in built)
            return f"the CUDA kernels are built for {archs}, which sm_{capability} does not run"
    return None


def unsupported_by_call(op: str, backend: str, arguments: Sequence[Any]) -> str | None:
    """As `unsupported_reason`, for the arguments of a call: their device, dtypes and shapes."""
    device = arguments[0].device
    interpreted = backend == "triton" and device.type == "cpu" and interpreting()
    # Triton's interpreter takes tensors on the CPU, for whoever forces this backend.
    reason = unsupported_reason(op, backend, "cuda" if interpreted else str(device))
    if reason is not None:
        return reason
    if backend in GPU_KERNELS:
        dtypes = {value.dtype for value in arguments if isinstance(value, torch.Tensor)}
        if torch.float64 in dtypes:
            return f"the {backend} backend takes float16, bfloat16 and float32, not float64"
        if interpreted and torch.bfloat16 in dtypes:
            return "Triton's interpreter has no bfloat16 arithmetic"
        if backend == "cuda" and torch.bfloat16 in dtypes and capability_of(device.index) < 80:
            return "bfloat16 needs sm_80 or newer"
    unsupported = _kernels[op][backend].unsupported
    return None if unsupported is None else unsupported(*arguments)


def interpreting() -> bool:
    """Whether Triton is installed and runs kernels in its interpreter, on the CPU."""
    if importlib.util.find_spec("triton") is None:
        return False
    from ocvtp_kernels.triton_common import launch

    return launch.interpreting()


def override() -> str | None:
    """The backend that `use_backend` forces here, or None."""
    return _override.get()


def select_backend(op: str, device: str) -> str:
    """The backend that runs ``ocvtp::op`` on ``device``, unless a call's shapes forbid it.

    Raises:
        BackendUnavailable: `use_backend` forces one that cannot run it.
    """
    forced = _override.get()
    if forced is not None:
        reason = unsupported_reason(op, forced, device)
        if reason is not None:
            raise BackendUnavailable(f"backend {forced!r}: {reason}")
        return forced
    return next(name for name in PREFERENCE if unsupported_reason(op, name, device) is None)


def select_kernel(op: str, arguments: Sequence[Any], serves_backward: bool = False) -> Function:
    """The implementation of ``ocvtp::op`` for these arguments, the first of them a tensor.

    Args:
        op: name without the namespace.
        arguments: the call's.
        serves_backward: the op is called by another's backward pass, never by name, so a forced
            backend that has no kernel for it is no error.

    Raises:
        BackendUnavailable: `use_backend` forces one that cannot take them.
    """
    forced = _override.get()
    kernels = _kernels[op]
    if forced is not None and not (serves_backward and forced not in kernels):
        reason = unsupported_by_call(op, forced, arguments)
        if reason is not None:
            raise BackendUnavailable(f"backend {forced!r}: {reason}")
        return kernels[forced].run
    device = arguments[0].device.type
    if device == "cpu":
        # Only a GPU kernel is particular about more than the device.
        return (kernels.get("cpu") or kernels["reference"]).run
    for name in PREFERENCE:
        if name not in kernels or device not in DEVICES.get(name, (device,)):
            continue
        if unsupported_by_call(op, name, arguments) is None:
            return kernels[name].run
    raise BackendUnavailable(f"ocvtp::{op} has no kernel for tensors on {device}")


def remember(device: torch.device) -> Remembered:
    """Called in the forward pass of an op on ``device``, for `in_backward`."""
    return Remembered(_override.get(), {} if device.type == "cpu" else _thread.overrides)


@contextmanager
def in_backward(remembered: Remembered) -> Iterator[None]:
    """Within the block, in an op's backward pass, the backend that `use_backend` promises."""
    name = _override.get() or _around_backward(remembered) or remembered.forced
    token = _override.set(name)
    try:
        yield
    finally:
        _override.reset(token)


def _around_backward(remembered: Remembered) -> str | None:
    """What is forced around ``.backward()``, in a thread of autograd's own."""
    # As torch 2.13 hands its caller's context to autograd's threads.
    if torch._C._is_key_in_tls("context"):
        context = torch._C._get_obj_in_tls("context")
        if isinstance(context, Context):
            return context.get(_override)
    # Before torch 2.13 the thread that ran the forward pass counts as the caller.
    overrides = list(remembered.overrides.values())
    return overrides[-1] if overrides else None


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block every op runs on backend ``name`` or raises with the reason.

    The choice belongs to the calling thread or task, so concurrent callers do not disturb one
    another. It holds for gradients too, on a GPU as well, where autograd runs them in a thread of
    its own: what is forced around ``.backward()`` runs them, else what was forced around the op.
    Before torch 2.13, on a GPU, the thread that ran the op counts as the one that calls
    ``.backward()``.

    Args:
        name: one of "reference", "cpu", "triton", "cuda".

    Raises:
        ValueError: there is no such backend.
        BackendUnavailable: no op of this version has a kernel for it, or the machine has no
            device that it runs on.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {BACKENDS}, got {name!r}")
    if not any(name in kernels for kernels in _kernels.values()):
        raise BackendUnavailable(f"backend {name!r}: no op has a {name} kernel in this version")
    needs_gpu = "cuda" in DEVICES.get(name, ()) and not (name == "triton" and interpreting())
    if needs_gpu and not torch.cuda.is_available():
        raise BackendUnavailable(f"backend {name!r}: torch {torch.__version__} sees no GPU")
    token = _override.set(name)
    block, overrides = object(), _thread.overrides
    overrides[block] = name
    try:
        yield
    finally:
        del overrides[block]
        _override.reset(token)
