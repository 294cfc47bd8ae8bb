"""The chips that the tile tables know."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import NamedTuple

import torch

OLDEST = 80


class Chip(NamedTuple):
    """A class of chips. Sources: CUDA C++ Programming Guide, "Compute Capabilities"; NVIDIA's
    whitepapers of each architecture for the products.
    """

    capability: int  # 90 for sm_90
    multiprocessors: int  # of A100, RTX 3090, RTX 4090, H200, B200, RTX 5090; else the device's
    shared_bytes: int  # most that one block may have
    products: int  # in half precision, summed in float32, a cycle and multiprocessor


CHIPS = {
    chip.capability: chip
    for chip in (
        Chip(80, 108, 163 * 1024, 1024),
        Chip(86, 82, 99 * 1024, 256),
        Chip(89, 128, 99 * 1024, 256),
        Chip(90, 132, 227 * 1024, 2048),
        Chip(100, 148, 227 * 1024, 4096),
        Chip(120, 170, 99 * 1024, 256),
    )
}
_pretended: ContextVar[Chip | None] = ContextVar("ocvtp_chip", default=None)


@cache
def capability_of(index: int) -> int:
    """Compute capability of a CUDA device, 90 for sm_90."""
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def nearest(capability: int) -> Chip:
    """The newest known chip that is no newer than ``capability``."""
    return CHIPS[max(known for known in CHIPS if known <= max(capability, OLDEST))]


def chip_of(device: torch.device) -> Chip:
    """The chip whose tile tables serve ``device``; off the GPU, the oldest."""
    pretended = _pretended.get()
    if pretended is not None:
        return pretended
    if device.type != "cuda":
        return CHIPS[OLDEST]
    index = torch.cuda.current_device() if device.index is None else device.index
    return _chip(index)


@cache
def _chip(index: int) -> Chip:
    known = nearest(capability_of(index))
    here = torch.cuda.get_device_properties(index).multi_processor_count
    return known._replace(multiprocessors=here)


@contextmanager
def pretend(chip: Chip) -> Iterator[None]:
    """Within the block every device counts as ``chip``, to look at launches for another."""
    token = _pretended.set(chip)
    try:
        yield
    finally:
        _pretended.reset(token)
