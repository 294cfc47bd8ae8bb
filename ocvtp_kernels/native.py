"""What the native objects were built with, or the one sentence that says why there are none."""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

import ocvtp_kernels

MODULE = "ocvtp_kernels._build_info"


@dataclass(frozen=True)
class BuildInfo:
    """Facts about the native build, and what this CPU can run."""

    compiler: str
    cxx_standard: int
    build_type: str
    flags: str
    architecture: str
    cuda_architectures: tuple[str, ...]
    cpu_capability: dict[str, bool]


def build_info() -> BuildInfo | str:
    """Return the native build's facts, or why there are none, in one sentence."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    try:
        module = importlib.import_module(MODULE)
        return BuildInfo(
            compiler=module.compiler,
            cxx_standard=module.cxx_standard,
            build_type=module.build_type,
            flags=module.flags,
            architecture=module.architecture,
            cuda_architectures=module.cuda_architectures,
            cpu_capability=module.cpu_capability(),
        )
    except ModuleNotFoundError:
        folders = [Path(folder) for folder in ocvtp_kernels.__path__]
        others = sorted(path.name for folder in folders for path in folder.glob("_build_info.*"))
        if others:
            return f"not built for {versions}, only: {', '.join(others)}; run `make native`"
        return "not built: install a C++ compiler and run `make native`"
    except (ImportError, AttributeError) as error:
        return f"built, but it does not load with {versions}: {error}; run `make native`"
