"""The architectures that the tile tables know."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import NamedTuple

import torch

OLDEST = 80


class GpuArch(NamedTuple):
    """A GPU architecture. Sources: CUDA C++ Programming Guide, "Compute Capabilities"; NVIDIA's
    whitepapers of each architecture for the products.
    """

    capability: int  # 90 for sm_90
    multiprocessors: int  # of A100, RTX 3090, RTX 4090, H200, B200, RTX 5090; else the device's
    shared_bytes: int  # most that one block may have
    products: int  # in half precision, summed in float32, a cycle and multiprocessor


ARCHS = {
    arch.capability: arch
    for arch in (
        GpuArch(80, 108, 163 * 1024, 1024),
        GpuArch(86, 82, 99 * 1024, 256),
        GpuArch(89, 128, 99 * 1024, 256),
        GpuArch(90, 132, 227 * 1024, 2048),
        GpuArch(100, 148, 227 * 1024, 4096),
        GpuArch(120, 170, 99 * 1024, 256),
    )
}
_pretended: ContextVar[GpuArch | None] = ContextVar("ocvtp_arch", default=None)


@cache
def capability_of(index: int) -> int:
    """Compute capability of a CUDA device, 90 for sm_90."""
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def nearest(capability: int) -> GpuArch:
    """The newest known architecture that is no newer than ``capability``."""
    return ARCHS[max(known for known in ARCHS if known <= max(capability, OLDEST))]


def arch_of(device: torch.device) -> GpuArch:
    """The architecture whose tile tables serve ``device``; off the GPU, the oldest."""
    pretended = _pretended.get()
    if pretended is not None:
        return pretended
    if device.type != "cuda":
        return ARCHS[OLDEST]
    index = torch.cuda.current_device() if device.index is None else device.index
    return _arch(index)


@cache
def _arch(index: int) -> GpuArch:
    known = nearest(capability_of(index))
    here = torch.cuda.get_device_properties(index).multi_processor_count
    return known._replace(multiprocessors=here)


@contextmanager
def pretend(arch: GpuArch) -> Iterator[None]:
    """Within the block every device counts as ``arch``, to look at launches for another."""
    token = _pretended.set(arch)
    try:
        yield
    finally:
        _pretended.reset(token)
