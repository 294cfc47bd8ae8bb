"""Compiles listed Triton binaries and their launch stubs into Triton's cache, without a GPU.

``python -m bench.gpu_check.warm LIST [LIST ...]``: prints hits and misses of the
cache by stage. With ``--strict`` the status is 1 where there was a miss.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import triton
from triton import knobs
from triton.backends.nvidia import driver as nvidia
from triton.runtime import build

from bench.compiled.binaries import StandIn
from bench.gpu_check.binaries import Binary, merged, read


class Prepared(NamedTuple):
    """The result for a binary."""

    binary: Binary
    hit: bool  # whether the cache had it
    built: int  # C stubs that it lacked; of versions of Triton that compile such
    failure: str = ""


def prepare(arch: int, binary: Binary) -> Prepared:
    """Compiles one binary where the cache lacks it.

    Triton's driver stays replaced by that of ``arch``, so use a new process.
    """
    triton.runtime.driver.set_active(StandIn(arch))
    module, name = binary.kernel.split(":")
    hits: list[bool] = []
    knobs.compilation.listener = lambda **event: hits.append(event["cache_hit"])
    # Loading a stub needs a driver, so it is mocked.
    loads = mock.patch.object(build, "_load_module_from_path", lambda *_: mock.MagicMock())
    with loads, mock.patch.object(build, "_build", wraps=build._build) as stub:
        try:
            kernel = getattr(importlib.import_module(module), name)
            arguments = binary.tensors_and_values()
            compiled = kernel.warmup(grid=(1,), **arguments, **binary.options)
            _launcher(compiled)
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).strip()[:200]}"
            return Prepared(binary, False, stub.call_count, why)
        return Prepared(binary, all(hits), stub.call_count)


def _launcher(compiled: Any) -> None:
    """Builds the C stub of a kernel's signature, in versions of Triton that have one."""
    if not hasattr(nvidia, "compile_module_from_src"):
        return
    with mock.patch.object(nvidia, "library_dirs", lambda: [nvidia.libdevice_dir, _libcuda()]):
        nvidia.CudaUtils()
        nvidia.CudaLauncher(compiled.src, compiled.metadata)


@cache
def _libcuda() -> str:
    """A folder with an empty library to link against in place of the driver's."""
    folder = tempfile.mkdtemp(prefix="ocvtp-libcuda-")
    source = Path(folder) / "empty.c"
    source.touch()
    command = ["cc", "-shared", "-Wl,-soname,libcuda.so.1", "-o", f"{folder}/libcuda.so.1"]
    subprocess.run([*command, str(source)], check=True)
    return folder


def warm(arch: int, binaries: Sequence[Binary]) -> list[Prepared]:
    """Prepares all binaries, in a process a core."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        return list(pool.map(prepare, [arch] * len(binaries), binaries, chunksize=4))


def report(prepared: Iterable[Prepared]) -> tuple[str, int]:
    """Hits and misses by stage, and how many misses there are."""
    hits, misses, failures = Counter[str](), Counter[str](), []
    missed = built = count = 0
    for one in prepared:
        count += 1
        missed += not one.hit
        built += one.built
        for stage in one.binary.stages:
            (hits if one.hit else misses)[stage] += 1
        if one.failure:
            failures.append(f"{one.binary.kernel}: {one.failure}")
    lines = [
        f"{stage:10} {hits[stage]:5} hits {misses[stage]:5} misses"
        for stage in sorted({*hits, *misses})
    ]
    lines += [f"{count} binaries: {count - missed} hits, {missed} misses, {built} stubs built"]
    return "\n".join([*lines, *failures]), missed + built


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check.warm", description=__doc__)
    parser.add_argument("lists", nargs="+", type=Path)
    parser.add_argument("--strict", action="store_true", help="a miss is a failure")
    given = parser.parse_args(arguments)
    found = [read(path) for path in given.lists]
    (arch,) = {arch for arch, _ in found}
    prepared = warm(arch, merged(binaries for _, binaries in found))
    said, missed = report(prepared)
    print(said)
    failed = any(one.failure for one in prepared)
    return int(failed or (given.strict and missed > 0))


if __name__ == "__main__":
    sys.exit(main())
