"""What is remembered between calls has a bound."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest

import ocvtp_kernels

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.triton_common.prepared import Prepared

# By device, of which there are few, or of no argument.
FEW = {
    "ocvtp_kernels.backends._no_cuda_reason",
    "ocvtp_kernels.backends._no_triton_reason",
    "ocvtp_kernels.triton_common.archs._arch",
    "ocvtp_kernels.triton_common.archs.capability_of",
    "ocvtp_kernels.native.missing_reason",
}
PACKAGES = ("triton_common", "ops", "vlm")


def functions() -> Iterator[tuple[str, Any]]:
    """What a launch, and what stands around it, may call."""
    names = [
        "ocvtp_kernels.native",
        "ocvtp_kernels.backends",
        "ocvtp_kernels.ops.prune.triton.pipeline",
    ]
    for package in PACKAGES:
        path = [f"{ocvtp_kernels.__path__[0]}/{package}"]
        names += [one.name for one in pkgutil.walk_packages(path, f"ocvtp_kernels.{package}.")]
    for name in names:
        module = importlib.import_module(name)
        for called, value in vars(module).items():
            if getattr(value, "__module__", None) == name:
                yield f"{name}.{called}", value


def test_every_cache_has_a_bound() -> None:
    cached = {name: value for name, value in functions() if isinstance(value, type(lru_cache(len)))}
    assert set(FEW) <= set(cached)
    unbounded = {name for name, value in cached.items() if value.cache_info().maxsize is None}
    assert unbounded <= FEW


def test_every_prepared_function_forgets() -> None:
    found = {name: value for name, value in functions() if isinstance(value, Prepared)}
    assert "ocvtp_kernels.ops.prune.triton.pipeline.prune" in found
    for one in found.values():
        assert one._entries.cache_info().maxsize == 128
