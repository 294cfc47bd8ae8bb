"""Runs the quick tests on an installed wheel, out of sight of the checkout and of compilers.

    python scripts/try_wheel.py dist/ocvtp_kernels-*.whl [--torch torch==2.13.0] [--options='-x']
    python scripts/try_wheel.py --installed    # in the environment of this Python

Tests marked `checkout` read the package's sources; they are left out.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What tests read beside the package; and files that lie beside these folders.
FOLDERS = (".ci", ".github", "bench", "csrc", "docs", "examples", "scripts", "tests")
MARKED = "not slow and not checkout"
COMPILER = re.compile(r"(.*-)?(c\+\+|g\+\+|gcc|cc|clang(\+\+)?|nvcc|cmake|ninja)(-[\d.]+)?")
PYTEST = ("-m", "pytest", "-n", "2", "--dist", "loadfile")
IMPORTED = """
import pathlib, sys, ocvtp_kernels
from ocvtp_kernels import installing, native
assert installing.PACKAGE.is_relative_to(sys.prefix), installing.PACKAGE
built = list(installing.PACKAGE.glob("_C.*so"))
print(ocvtp_kernels.__version__, native.cpu_kernels() if built else "pure Python", flush=True)
assert not built or native.missing_reason("cpu") is None
"""


def copy_rest(target: Path) -> None:
    """The checkout but for the package itself and what is built."""
    target.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    for path in ROOT.iterdir():
        if path.name in FOLDERS:
            shutil.copytree(path, target / path.name, ignore=ignore)
        elif path.is_file():
            shutil.copy2(path, target)


def without_compilers(target: Path) -> str:
    """A folder of links to every program on PATH that compiles nothing."""
    target.mkdir()
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        for program in Path(folder).iterdir() if folder and Path(folder).is_dir() else ():
            link = target / program.name
            if not COMPILER.fullmatch(program.name) and not link.is_symlink():
                link.symlink_to(program)
    return str(target)


def make_environment(folder: Path, wheel: Path, torch: str) -> str:
    """The Python of a new environment with the wheel and what its tests need."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install")
    subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, f"{wheel.resolve()}[test]"], check=True)
    return python


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns pytest's status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path, nargs="?")
    parser.add_argument("--installed", action="store_true", help="the wheel is installed here")
    pinned = re.search(r"^torch==\S+", (ROOT / "constraints.txt").read_text("utf-8"), re.M)
    parser.add_argument("--torch", default=pinned[0] if pinned else "torch", help="%(default)s")
    parser.add_argument("--options", default="", help="more for pytest")
    given = parser.parse_args(arguments)
    if given.installed == (given.wheel is not None):
        parser.error("expected either a wheel or --installed")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        copy_rest(folder / "rest")
        python = sys.executable
        if given.wheel is not None:
            python = make_environment(folder / "env", given.wheel, given.torch)
        settings = {
            **os.environ,
            "PATH": without_compilers(folder / "bin"),
            **dict.fromkeys(("CC", "CXX", "CUDACXX"), "/nonexistent"),
        }
        settings.pop("PYTHONPATH", None)
        for command in (("-c", IMPORTED), (*PYTEST, "-m", MARKED, *shlex.split(given.options))):
            status = subprocess.run([python, *command], cwd=folder / "rest", env=settings)
            if status.returncode:
                return status.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
