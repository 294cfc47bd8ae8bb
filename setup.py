"""Drives CMakeLists.txt for the optional native objects; the metadata lives in pyproject.toml.

OCVTP_NATIVE at build time: "auto" (default) builds them if the tools are there and goes on in pure
Python otherwise, with one sentence, which the package keeps; "0" never builds them; "1" makes
anything missing an error. scripts/native_tools.py looks for the tools and for torch.
The CUDA object is built too where torch has CUDA and nvcc is of the same major version; "cuda" is
"1" and makes a missing CUDA object an error. OCVTP_CUDA_ARCHITECTURES, such as "8.0 9.0", chooses
its architectures; unset, csrc/cuda_architectures.cmake does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "scripts"))
from native_tools import (  # noqa: E402
    Pure,
    failed_build,
    find_cmake,
    find_compiler,
    find_ninja,
    find_nvcc,
    find_torch,
    first_error,
    read_mode,
    why_no_cuda,
    why_pure,
)

PACKAGE = "ocvtp_kernels"
OLDEST_PYTHON = "cp310"  # of the limited API, as in CMakeLists.txt
# Read by ocvtp_kernels/native.py where the native objects are missing.
WHY_FILE = "why_not_native.json"

OBJECTS = ("_C", "_C_cuda", "_build_info")  # the facts last: they tell of the others
MODE = read_mode()
IS_PURE = why_pure() is not None
WHY_NO_CUDA = why_no_cuda()
TARGETS = [name for name in OBJECTS if name != "_C_cuda" or not WHY_NO_CUDA]


def built_in_place() -> set[Path]:
    """Return the native objects in the source tree, which an editable install loads."""
    return {path for name in OBJECTS for path in (ROOT / PACKAGE).glob(f"{name}.*so")}


def leave_why(pure: Pure | None, command: Any) -> None:
    """Write why there are no native objects into what is built, or remove what was written."""
    folder = ROOT if command.editable_mode else Path(command.build_lib)
    path = folder / PACKAGE / WHY_FILE
    if pure is None:
        path.unlink(missing_ok=True)
        return
    aside = path.with_name(f"{path.name}.new")
    aside.write_text(json.dumps(pure._asdict(), indent=2) + "\n", encoding="utf-8")
    os.replace(aside, path)


class BuildPython(build_py):
    """Says once why a build is pure; an editable install then loses the objects of earlier ones."""

    def run(self) -> None:
        """Copy the modules."""
        pure = why_pure(is_editable=self.editable_mode)
        if MODE != "auto" and pure and not pure.is_chosen:
            sys.exit(f"OCVTP_NATIVE={MODE}, but {pure.why}; {pure.mend}.")
        if MODE == "cuda" and WHY_NO_CUDA:
            sys.exit(f"OCVTP_NATIVE=cuda, but {WHY_NO_CUDA}.")
        super().run()
        if pure:
            print(f"Going on in pure Python: {pure.why}; {pure.mend}.")
            leave_why(pure, self)
            if self.editable_mode:
                for stale in built_in_place():
                    stale.unlink()


def run_aloud(command: Sequence[str]) -> None:
    """Run a command and pass on what it says, which the error has as its ``output`` too."""
    said = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # In English, and in characters that every terminal has.
        env={**os.environ, "LC_ALL": "C"},
        encoding="ascii",
        errors="backslashreplace",
    ) as running:
        for line in running.stdout or ():
            said.append(line)
            print(line, end="", flush=True)
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command, "".join(said))


class CMakeBuild(build_ext):
    """Configures, builds and installs the CMake project into the build tree."""

    def build_extensions(self) -> None:
        """Build every target at once; under "auto" a failure leaves a pure-Python install."""
        try:
            self.run_cmake()
            leave_why(None, self)
        except subprocess.CalledProcessError as error:
            failure = f"the native build failed: {first_error(error.output)}"
            if MODE != "auto":
                sys.exit(f"OCVTP_NATIVE={MODE}, but {failure}; its messages are above.")
            kept = self.editable_mode and built_in_place()
            way = "with the native objects of an earlier build" if kept else "in pure Python"
            print(f"Going on {way}: {failure}; its messages are above.", flush=True)
            if not kept:
                leave_why(failed_build(failure, is_editable=self.editable_mode), self)
            for extension in self.extensions:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            self.extensions.clear()
            # Decided before the build ran: a wheel without binaries serves every platform.
            if wheel := self.distribution.get_command_obj("bdist_wheel", create=False):
                wheel.root_is_pure = True

    def run_cmake(self) -> None:
        """Run CMake in a directory that outlives editable installs, so that they are quick."""
        cmake, ninja, compiler, torch = find_cmake(), find_ninja(), find_compiler(), find_torch()
        assert cmake and ninja and compiler and torch
        tree = ROOT / "build" / f"native-{sysconfig.get_platform()}"
        configure = [cmake, "-S", str(ROOT), "-B", str(tree), "-G", "Ninja"]
        configure += [
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DCMAKE_CXX_COMPILER={';'.join(compiler)}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DOCVTP_TORCH={torch.folder}",
            f"-DOCVTP_CUDA={'OFF' if WHY_NO_CUDA else 'ON'}",
            f"-DOCVTP_WHY_NO_CUDA={WHY_NO_CUDA or ''}",
            f"-DOCVTP_CUDA_ARCHITECTURES={os.environ.get('OCVTP_CUDA_ARCHITECTURES', '')}",
        ]
        if not WHY_NO_CUDA:
            configure.append(f"-DCMAKE_CUDA_COMPILER={find_nvcc()}")
        # CMake remembers the tools of the first run; with other ones, start over.
        tools = tree / "configured_with.txt"
        wanted = "\n".join([*configure, os.environ.get("CXXFLAGS", ""), str(torch)])
        if not tools.exists() or tools.read_text(encoding="utf-8") != wanted:
            shutil.rmtree(tree, ignore_errors=True)
            run_aloud(configure)
            tools.write_text(wanted, encoding="utf-8")
        run_aloud([cmake, "--build", str(tree)])
        prefix = str(Path(self.build_lib).resolve())
        run_aloud([cmake, "--install", str(tree), "--prefix", prefix])

    def copy_extensions_to_source(self) -> None:
        """Replace the objects of the source tree, once all new ones are built."""
        super().copy_extensions_to_source()
        if self.extensions:
            new = {Path(self.get_ext_filename(each.name)).name for each in self.extensions}
            for old in built_in_place():
                if old.name not in new:
                    old.unlink()

    def copy_file(self, infile: str, outfile: str, *args: Any, **kwargs: Any) -> Any:
        """Copy beside the target and rename: processes that run keep the old one, whole."""
        aside = f"{outfile}.new"
        copied = super().copy_file(infile, aside, *args, **kwargs)
        os.replace(aside, outfile)
        return outfile, copied[1]


setup(
    ext_modules=[]
    if IS_PURE
    else [Extension(f"{PACKAGE}.{name}", [], py_limited_api=True) for name in TARGETS],
    options={} if IS_PURE else {"bdist_wheel": {"py_limited_api": OLDEST_PYTHON}},
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildPython},
)
