"""Prepares the bundle ``.gpu/`` without a GPU, so that a GPU machine need not compile.

``python -m bench.gpu_check.bundle [--chip 90]``, in an environment of the GPU machine's Python,
torch, Triton and transformers: the native objects for its arch, Triton's cache with every kernel
that a stage launches, the list of them, and the wheels of third-party kernels. ``--check`` finds
the launches again and looks each up in the bundle's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from bench.checkout import ROOT, commit, pip_install, tests_marked

FOLDER, LIST, CACHE, MANIFEST = ".gpu", "launches.json", "triton-cache.tar.xz", "manifest.json"
WHEELS = ("flashslice==0.3.0", "flash-colreduce==0.2.2", "einops>=0.8")
CACHED_SUFFIXES = (".cubin", ".json", ".so")  # the files that Triton reads from its cache
INSTALLED_CACHE, SITE = "triton-cache", "site"  # in the folder of a check
GROUP = "__grp__"  # begins the names of files that list the paths of others
MAX_BYTES = 60 * 2**20
TESTS = {"tests": "gpu", "kernels": "interpreter"}  # stages, and the mark of their tests


def count(folder: Path) -> int:
    """Entries of a check's cache."""
    return sum(1 for _ in (folder / INSTALLED_CACHE).glob("*"))


def install(prepared: Path, folder: Path) -> str:
    """Copies a bundle's parts to where a check looks for them; returns a sentence about it."""
    for made in prepared.glob("*.so"):
        temporary = ROOT / "ocvtp_kernels" / f"{made.name}.new"
        shutil.copyfile(made, temporary)
        temporary.replace(temporary.with_suffix(""))
    manifest = json.loads((prepared / MANIFEST).read_text(encoding="utf-8"))
    installed = folder / MANIFEST
    if not installed.exists() or json.loads(installed.read_text(encoding="utf-8")) != manifest:
        unpack(prepared / CACHE, folder / INSTALLED_CACHE)
        for wheel in prepared.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder / SITE)
        shutil.copyfile(prepared / MANIFEST, installed)
    said = ", ".join(f"{name} {value}" for name, value in manifest.items())
    return f"prepared: {said}; {count(folder)} entries in Triton's cache"


def unpack(archive: Path, cache: Path) -> None:
    """Adds an archive to a cache, with the paths in its group files changed to the cache's."""
    temporary = cache.with_name(f"{cache.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    with tarfile.open(archive) as packed:
        packed.extractall(temporary, filter="data")
    for group in temporary.glob(f"*/{GROUP}*"):
        top = json.loads(group.read_text(encoding="utf-8"))
        here, there = group.parent, cache / group.parent.name
        kept = [name for name in top["child_paths"] if (here / name).exists()]
        top["child_paths"] = {name: str(there / name) for name in kept}
        group.write_text(json.dumps(top), encoding="utf-8")
    cache.mkdir(parents=True, exist_ok=True)
    for entry in temporary.iterdir():
        # An entry's name is a hash of its content's inputs, so one that exists is the same.
        if not (cache / entry.name).exists():
            entry.replace(cache / entry.name)
    shutil.rmtree(temporary)


def pack(cache: Path, archive: Path) -> None:
    """Packs the files of a cache that Triton reads."""
    with tarfile.open(archive, "w:xz", preset=3) as packed:
        for path in sorted(cache.glob("*/*")):
            if path.suffix in CACHED_SUFFIXES:
                packed.add(path, path.relative_to(cache))


def record(arch: int, folder: Path) -> list[Path]:
    """The lists of the kernels of every stage, each recorded in new processes."""
    folder.mkdir(parents=True, exist_ok=True)
    others = folder / "others.json"
    _call("-m", "bench.gpu_check.launches", str(arch), str(others))
    for stage, mark in TESTS.items():
        _call(
            *("-m", "pytest", "-p", "bench.gpu_check.record_tests", "--assert=plain", "-m", mark),
            *("-q", "-p", "no:cacheprovider", "-n", "2", "--dist", "worksteal", "-W", "ignore"),
            *("--tb=line", "-r", "fE", *tests_marked(mark)),
            OCVTP_RECORD_CHIP=str(arch),
            OCVTP_RECORD_STAGE=stage,
            OCVTP_RECORD_FOLDER=str(folder),
        )
    return sorted(folder.glob("*.json"))


def _call(*arguments: str, check: bool = True, **environment: str) -> int:
    """Runs this Python; returns its status, and unless ``check`` is False a failure is raised."""
    # Kernels are compiled or recorded, never interpreted.
    given = {**os.environ, "TRITON_INTERPRET": "0", **environment}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=given, check=check).returncode


def make(arch: int, target: Path) -> int:
    """Makes a bundle; returns the exit status."""
    temporary = target.with_name(f"{target.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        lists = record(arch, Path(folder))
        from bench.gpu_check import binaries

        found = binaries.merged(binaries.read(path)[1] for path in lists)
        binaries.write(temporary / LIST, arch, found)
        cache = Path(folder) / "cache"
        _call("-m", "bench.gpu_check.warm", str(temporary / LIST), TRITON_CACHE_DIR=str(cache))
        pack(cache, temporary / CACHE)
    architecture = f"{arch // 10}.{arch % 10}"
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "built"
        pip_install(str(ROOT), built, OCVTP_NATIVE="cuda", OCVTP_CUDA_ARCHITECTURES=architecture)
        for path in (built / "ocvtp_kernels").glob("*.so"):
            shutil.copy2(path, temporary)
    for wheel in WHEELS:
        command = ("-m", "pip", "download", "--quiet", "--no-deps", "-d", str(temporary), wheel)
        if _call(*command, "--disable-pip-version-check", check=False):
            print(f"{wheel} is left out: pip finds none", flush=True)
    manifest = {
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "chip": f"sm_{arch}",
        "commit": commit(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "triton", "transformers")},
    }
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    temporary.replace(target)
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{target}: {size / 2**20:.1f} MiB, {len(found)} binaries")
    if size > MAX_BYTES:
        print(f"that is more than the {MAX_BYTES // 2**20} MiB allowed")
    return int(size > MAX_BYTES)


def check(prepared: Path) -> int:
    """Whether a bundle's cache has every launch of every stage; returns the exit status."""
    manifest = json.loads((prepared / MANIFEST).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        unpack(prepared / CACHE, cache)
        lists = record(int(manifest["chip"].removeprefix("sm_")), Path(folder) / "lists")
        command = ("-m", "bench.gpu_check.warm", *map(str, lists), "--strict")
        return _call(*command, check=False, TRITON_CACHE_DIR=str(cache))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check.bundle", description=__doc__)
    parser.add_argument("--chip", type=int, default=90, help="of the GPU machine: 90 for an H100")
    parser.add_argument("--check", type=Path, help="a bundle to check, instead of making one")
    given = parser.parse_args(arguments)
    start = time.monotonic()
    status = check(given.check.resolve()) if given.check else make(given.chip, ROOT / FOLDER)
    print(f"{time.monotonic() - start:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
