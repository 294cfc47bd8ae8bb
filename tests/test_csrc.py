"""The bindings compile beside any torch's headers, and no instruction set has another's code.

What they do is tested in tests/csrc.
"""

from __future__ import annotations

import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.build_cases import ROOT, SANITIZED, built_tests, said_by, tools_or_skip

QUICK = "resolve_picks_cuda.cu"  # compiled in every run
INSTALLED = Path(torch.__file__).parent / "include"
OLDEST = ROOT / "build" / "oldest_torch" / "torch" / "include"  # where `make headers` leaves them
CUDA_BINDINGS = sorted(ROOT.glob("csrc/*/*_cuda.cu"))
CPU_BINDINGS = sorted(
    [
        ROOT / "csrc" / "module_cpu.cpp",
        *ROOT.glob("csrc/*/*_cpu.cpp"),
        *ROOT.glob("csrc/*/*_schema.cpp"),
    ]
)


def test_the_instruction_sets_share_no_code() -> None:
    """The linker keeps one copy of a weak symbol: an old CPU must not get AVX-512's."""
    if SANITIZED:
        pytest.skip("what is compiled for sanitizers inlines less")
    (nm,) = tools_or_skip("nm")
    seen = Counter[str]()
    folders = list((built_tests("kernels") / "CMakeFiles").glob("kernels_*.dir"))
    for folder in folders:
        said = said_by([nm, "-C", "--defined-only", *folder.rglob("*.o")], ROOT)
        symbols = [line.split(maxsplit=2) for line in said.splitlines()]
        weak = {symbol[2] for symbol in symbols if len(symbol) == 3 and symbol[1] in "WVu"}
        assert weak, folder
        seen.update(weak)
    assert folders and [symbol for symbol, sets in seen.items() if sets > 1] == []


def compiled_beside(includes: Path, *sources: Path) -> list[Any]:
    return [
        pytest.param(
            source,
            includes,
            id=f"{source.name} beside {'the oldest' if includes == OLDEST else 'this'}",
            marks=() if source.name == QUICK else pytest.mark.slow,
        )
        for source in sources
    ]


@pytest.mark.compile
@pytest.mark.parametrize(
    ("source", "includes"),
    [
        *compiled_beside(INSTALLED, *CUDA_BINDINGS),
        *compiled_beside(OLDEST, *CUDA_BINDINGS, *CPU_BINDINGS),
    ],
)
def test_the_bindings_compile_beside_any_torch(
    source: Path, includes: Path, tmp_path: Path
) -> None:
    if not includes.exists():
        pytest.skip("the headers of the oldest torch are not here: make headers")
    (compiler,) = tools_or_skip("nvcc" if source.suffix == ".cu" else "c++")
    options = ["-arch=sm_90", "-DUSE_CUDA"] if source.suffix == ".cu" else ["-fPIC"]
    folders = [ROOT / "csrc", includes, includes / "torch/csrc/api/include"]
    said_by(
        [
            compiler,
            "-std=c++17",
            *options,
            "-DTORCH_TARGET_VERSION=0x020a000000000000",
            *(f"-I{folder}" for folder in (*folders, sysconfig.get_path("include"))),
            "-c",
            source,
            "-o",
            tmp_path / "binding.o",
        ],
        tmp_path,
    )
    # Not expanded it would be the name of the namespace.
    assert b"OCVTP_NAMESPACE" not in (tmp_path / "binding.o").read_bytes()
