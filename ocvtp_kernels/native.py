"""The native objects, loaded when first asked for, or the sentence that says why there are none.

``_build_info`` holds facts about the build, ``_C`` the CPU kernels and ``_C_cuda`` the CUDA kernels
of ``torch.ops.ocvtp_native``; see csrc/module_cpu.cpp.
"""

from __future__ import annotations

import importlib
import json
import platform
import warnings
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels import installing
from ocvtp_kernels.dtypes import product_dtype

MODULE = "ocvtp_kernels._build_info"
WHY_FILE = "why_not_native.json"  # setup.py's, where it builds nothing native
# What the kernels of a device need, in the order of loading: the schemas are in _C.
LIBRARIES = {"cpu": ("_C",), "cuda": ("_C", "_C_cuda")}
WIDE = (torch.float32, torch.float64)  # what the CPU kernels compute in


@dataclass(frozen=True)
class BuildInfo:
    """Facts about the native build, and what this CPU can run."""

    compiler: str
    cxx_standard: int
    build_type: str
    flags: str
    architecture: str
    cuda_architectures: tuple[str, ...]
    why_no_cuda: str  # empty where _C_cuda was built
    cpu_capability: dict[str, bool]


def build_info() -> BuildInfo | str:
    """Return the native build's facts, or why there are none, in one sentence."""
    try:
        module = importlib.import_module(MODULE)
        return BuildInfo(
            compiler=module.compiler,
            cxx_standard=module.cxx_standard,
            build_type=module.build_type,
            flags=module.flags,
            architecture=module.architecture,
            cuda_architectures=tuple(module.cuda_architectures.split()),
            why_no_cuda=module.why_no_cuda,
            cpu_capability=module.cpu_capability(),
        )
    except (ImportError, AttributeError) as error:
        return _sentence("_build_info", error)


@cache
def missing_reason(device_type: str) -> str | None:
    """Load the native kernels for "cpu" or "cuda"; return why there are none, or None."""
    for name in LIBRARIES[device_type]:
        try:
            importlib.import_module(f"ocvtp_kernels.{name}")
        except ImportError as error:
            info = build_info()
            if name == "_C_cuda" and not isinstance(info, str) and info.why_no_cuda:
                return f"the CUDA kernels were not built: {info.why_no_cuda}"
            return f"the {device_type} kernels are {_sentence(name, error)}"
    return None


def is_built() -> bool:
    """Whether the CPU kernels load; warns once where they do not."""
    if missing_reason("cpu") is None:
        return True
    _warn_once()
    return False


@lru_cache(maxsize=1)
def _warn_once() -> None:
    """Says that the CPU goes the slow way, unless whoever installed the package chose that."""
    if not _build_note().get("is_chosen"):
        warnings.warn(
            f"ops on the CPU run plain PyTorch, which is slower: {missing_reason('cpu')}",
            RuntimeWarning,
            stacklevel=2,
        )


def _build_note() -> dict[str, Any]:
    """What `setup.py` left where it built nothing native: why, and how to mend that."""
    path = installing.PACKAGE / WHY_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def cpu_kernels() -> str:
    """What runs on the CPU: the native kernels and their instruction set, or why not."""
    reason = missing_reason("cpu")
    if reason is not None:
        return f"plain PyTorch: {reason}"
    return f"native, {torch.ops.ocvtp_native.isa('')}"


def upcast(tensor: Tensor) -> Tensor:
    """The tensor as the kernels of its device sum it: wide on the CPU, rows dense on a GPU."""
    if not tensor.is_cpu:
        return dense_rows(tensor)
    # A cast that does nothing is not free.
    return tensor if tensor.dtype in WIDE else tensor.float()


def for_products(tensor: Tensor) -> Tensor:
    """As `upcast`, for kernels beside products: bfloat16 stays where the CPU multiplies it."""
    if not tensor.is_cpu:
        return dense_rows(tensor)
    if tensor.dtype in WIDE:
        return tensor
    return tensor.to(product_dtype(tensor.dtype, tensor.device))


def dense_rows(tensor: Tensor) -> Tensor:
    """The tensor, copied unless its last dimension has stride 1."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _sentence(name: str, error: Exception) -> str:
    """Why a native object does not load."""
    mend = installing.install_command(setting="OCVTP_NATIVE=1")
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    if not isinstance(error, ModuleNotFoundError):
        return f"built, but {name} does not load with {versions}: {error}; run {mend}"
    others = sorted(path.name for path in installing.PACKAGE.glob(f"{name}.*"))
    if others:
        return f"not built for {versions}, only: {', '.join(others)}; run {mend}"
    note = _build_note()
    if not note:
        return f"not built: nothing was ever built here; run {mend}"
    return f"not built: {note['why']}; {note['mend']}"
