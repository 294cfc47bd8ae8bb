"""How a GPU's BLAS sums products of half precision: in float32, whatever torch is set to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

REDUCED = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
NARROW = "allow_fp16_accumulation"

_lock = threading.Lock()
_inside = 0  # blocks that have been entered and not left, in all threads
_kept: dict[str, Any] = {}


def float32_sums(device: torch.device) -> AbstractContextManager[None]:
    """Within the block products on this device sum in float32, partial sums of split-K too.

    Torch has one setting for all threads: it is as it was again when the last of them has left.
    Does nothing on the CPU.
    """
    return _float32_sums() if device.type == "cuda" else nullcontext()


@contextmanager
def _float32_sums() -> Iterator[None]:
    global _inside
    settings = torch.backends.cuda.matmul
    with _lock:
        if _inside == 0:
            for name in REDUCED:
                _kept[name] = _reduction(settings, name)
                _set_reduction(settings, name, False, *_kept[name][1:])
            _kept[NARROW] = settings.allow_fp16_accumulation
            settings.allow_fp16_accumulation = False
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                for name in REDUCED:
                    _set_reduction(settings, name, *_kept[name])
                settings.allow_fp16_accumulation = _kept[NARROW]


def _reduction(settings: Any, name: str) -> tuple[bool, ...]:
    """Whether partial sums may be narrow and, where torch tells, whether there may be any."""
    split = getattr(settings, f"{name}_split_k", None)
    return (getattr(settings, name), *(() if split is None else (split,)))


def _set_reduction(settings: Any, name: str, narrow: bool, *split: bool) -> None:
    setattr(settings, name, (narrow, *split) if split else narrow)
