"""Why no native kernels are here, and the casts that they would take."""

from __future__ import annotations

WHY = (
    "not built: this kernel is PyTorch and Triton alone; the package ocvtp-kernels has C++ kernels"
)


def build_info() -> str:
    """Why there are no facts about a native build."""
    return WHY


def missing_reason(device_type: str) -> str:
    """Why there are no native kernels for "cpu" or "cuda"."""
    return f"the {device_type} kernels are {WHY}"


def is_built() -> bool:
    """Whether there are native kernels for the CPU."""
    return False
