"""The dtypes that sums are taken in, and that products are made in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

# What torch has functions for, and the native kernels' interface a name.
_COPIED = frozenset(
    {
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
        *(torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
        *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.complex32, torch.complex64, torch.complex128),
    }
)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_copied(tensor: Tensor) -> Tensor:
    """The tensor, or its bits where its dtype is one that little can be done with but a copy."""
    return tensor if tensor.dtype in _COPIED else tensor.view(_BITS[tensor.itemsize])


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for every narrower floating dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What a device multiplies tensors of ``dtype`` in: on a CPU float32 is often the faster.

    A CPU that multiplies bfloat16 does so, with sums in float32; for every other half precision it
    would cast each number there and back.
    """
    if device.type != "cpu" or (dtype == torch.bfloat16 and _has_onednn() and _has_bfloat16()):
        return dtype
    return acc_dtype(dtype)


def in_autocast(device: torch.device) -> bool:
    """Whether autocast is on for tensors of a device; the meta device has none."""
    kind = device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def autocast_off(device: torch.device) -> AbstractContextManager[Any]:
    """Within the block tensors of a device are in the dtypes that the code chooses."""
    # A context costs time.
    return torch.autocast(device.type, enabled=False) if in_autocast(device) else nullcontext()


def _has_bfloat16() -> bool:
    """Whether this CPU has AVX-512 BF16 or AMX."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)
