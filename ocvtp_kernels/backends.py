"""Which backend runs an op on a device, and the sentence why another does not.

A backend is one implementation of an op: "reference" is plain PyTorch on any device, "cpu"
accumulates in float32 or wider and stores less, "triton" and "cuda" are GPU kernels. An op's
implementations register here; the op asks `choose` on the real tensors at every call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

Kernel = Callable[..., Any]

BACKENDS = ("reference", "cpu", "triton", "cuda")
# Best first; the first that is there and runs on the device is taken.
PREFERENCE = ("triton", "cuda", "cpu", "reference")
DEVICES = {"cpu": ("cpu",), "triton": ("cuda",), "cuda": ("cuda",)}

_kernels: dict[str, dict[str, Kernel]] = {}
_forced: ContextVar[str | None] = ContextVar("ocvtp_backend", default=None)


class BackendUnavailable(RuntimeError):
    """The backend asked for cannot run here; the message says why."""


def register(op: str, backend: str, kernel: Kernel) -> None:
    """Makes ``kernel`` the implementation of ``ocvtp::op`` on ``backend``."""
    _kernels.setdefault(op, {})[backend] = kernel


def registered_ops() -> tuple[str, ...]:
    """Names of all ops that have an implementation, sorted."""
    return tuple(sorted(_kernels))


def why_not(op: str, backend: str, device: str) -> str | None:
    """The sentence why ``backend`` does not run ``ocvtp::op`` on tensors of ``device``, or None.

    Args:
        op: name without the namespace, e.g. "prune".
        backend: one of `BACKENDS`.
        device: a device type, "cpu" or "cuda".
    """
    if backend not in _kernels.get(op, {}):
        return f"ocvtp::{op} has no {backend} kernel in this version"
    devices = DEVICES.get(backend)
    if devices is not None and device not in devices:
        return f"the {backend} backend takes tensors on {' or '.join(devices)}, not on {device}"
    return None


def chosen(op: str, device: str) -> str:
    """The backend that `choose` takes for ``ocvtp::op`` on ``device``.

    Raises:
        BackendUnavailable: `use_backend` forces one that cannot run it.
    """
    forced = _forced.get()
    if forced is not None:
        reason = why_not(op, forced, device)
        if reason is not None:
            raise BackendUnavailable(f"backend {forced!r}: {reason}")
        return forced
    return next(name for name in PREFERENCE if why_not(op, name, device) is None)


def choose(op: str, device: torch.device) -> Kernel:
    """The implementation of ``ocvtp::op`` for tensors on ``device``."""
    return _kernels[op][chosen(op, device.type)]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block every op runs on backend ``name`` or raises with the reason.

    The choice belongs to the calling thread or task, so concurrent callers do not disturb one
    another.

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
    if "cuda" in DEVICES.get(name, ()) and not torch.cuda.is_available():
        raise BackendUnavailable(f"backend {name!r}: torch {torch.__version__} sees no GPU")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)
