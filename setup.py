"""Drives CMakeLists.txt for the optional native objects; the metadata lives in pyproject.toml.

OCVTP_NATIVE at build time: "auto" (default) builds them if the tools are there and goes on in pure
Python otherwise, with one sentence; "0" never builds them; "1" makes anything missing an error.
The CUDA object is built too where torch has CUDA and nvcc is of the same major version; "cuda" is
"1" and makes a missing CUDA object an error. OCVTP_CUDA_ARCHITECTURES, such as "8.0 9.0", chooses
its chips; unset, csrc/cuda_architectures.cmake does.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = "ocvtp_kernels"
OLDEST_TORCH = (2, 10)  # its stable ABI is what the sources ask for
OLDEST_PYTHON = "cp310"  # of the limited API, as in CMakeLists.txt

MODE = os.environ.get("OCVTP_NATIVE", "auto")
if MODE not in ("auto", "0", "1", "cuda"):
    sys.exit(f"OCVTP_NATIVE must be auto, 0, 1 or cuda, not {MODE!r}.")


def find_tool(name: str) -> str | None:
    """Look beside this Python first: a virtual environment need not be activated."""
    scripts = sysconfig.get_path("scripts")
    return shutil.which(name, path=os.pathsep.join([scripts, os.environ.get("PATH", "")]))


def find_compiler() -> list[str] | None:
    """Return the C++ compiler and its leading arguments; CXX, where set, is the only candidate."""
    wanted = shlex.split(os.environ.get("CXX", ""))
    for name in wanted[:1] or ["c++", "g++", "clang++", "cl"]:
        if path := find_tool(name):
            return [path, *wanted[1:]]
    return None


def find_nvcc() -> str | None:
    """Return the CUDA compiler; CUDACXX, where set, is the only candidate, as for CMake."""
    if wanted := os.environ.get("CUDACXX"):
        return find_tool(wanted)
    return find_tool("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def torch_versions() -> tuple[str, str | None] | None:
    """Return the versions of torch and of its CUDA (None for a CPU build), without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    facts = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return facts["__version__"], facts["cuda"]


def missing_tools() -> list[str]:
    """Name what the native build needs and this machine lacks."""
    compiler = "a C++ compiler" + (f" (CXX={os.environ['CXX']})" if os.environ.get("CXX") else "")
    versions = torch_versions()
    new_enough = versions and tuple(map(int, versions[0].split(".")[:2])) >= OLDEST_TORCH
    torch = "torch 2.10 or newer (install it first, and build with --no-build-isolation)"
    found = {
        compiler: find_compiler(),
        "cmake": find_tool("cmake"),
        "ninja": find_tool("ninja"),
        torch: new_enough,
    }
    return [name for name, at in found.items() if not at]


def why_pure() -> str | None:
    """Return the sentence that says why nothing native is built, or None where it is."""
    if MODE == "0":
        return "Going on in pure Python: OCVTP_NATIVE=0 asks for it."
    if missing := missing_tools():
        if MODE != "auto":
            sys.exit(f"OCVTP_NATIVE={MODE}, but the native build lacks {', '.join(missing)}.")
        return f"Going on in pure Python: the native build lacks {', '.join(missing)}."
    return None


def why_no_cuda() -> str | None:
    """Return why the CUDA object is not built, as `ocvtp doctor` says it, or None where it is."""
    nvcc, versions = find_nvcc(), torch_versions()
    if nvcc is None:
        why = "nvcc was not found"
    elif MODE == "cuda":
        return None
    elif versions is None or versions[1] is None:
        why = "torch has no CUDA (OCVTP_NATIVE=cuda builds it all the same)"
    else:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        release = re.search(r"release (\d+)\.", said)
        if release and release[1] == versions[1].split(".")[0]:
            return None
        own = release[1] if release else "an unknown version"
        why = f"nvcc is of CUDA {own}, torch of CUDA {versions[1]}"
    if MODE == "cuda":
        sys.exit(f"OCVTP_NATIVE=cuda, but {why}.")
    return why


OBJECTS = ("_C", "_C_cuda", "_build_info")  # the facts last: they tell of the others
WHY_PURE = why_pure()
WHY_NO_CUDA = WHY_PURE or why_no_cuda()
TARGETS = [name for name in OBJECTS if name != "_C_cuda" or not WHY_NO_CUDA]


def built_in_place() -> set[Path]:
    """Return the native objects in the source tree, which an editable install loads."""
    return {path for name in OBJECTS for path in (ROOT / PACKAGE).glob(f"{name}.*so")}


class BuildPython(build_py):
    """Says once why a build is pure; an editable install then loses the objects of earlier ones."""

    def run(self) -> None:
        """Copy the modules."""
        if WHY_PURE:
            print(WHY_PURE)
            if self.editable_mode:
                for stale in built_in_place():
                    stale.unlink()
        super().run()


class CMakeBuild(build_ext):
    """Configures, builds and installs the CMake project into the build tree."""

    def build_extensions(self) -> None:
        """Build every target at once; under "auto" a failure leaves a pure-Python install."""
        try:
            self.run_cmake()
        except subprocess.CalledProcessError as error:
            failure = f"the native build failed: cmake ended with status {error.returncode}"
            if MODE != "auto":
                sys.exit(f"OCVTP_NATIVE={MODE}, but {failure}; its messages are above.")
            kept = self.editable_mode and built_in_place()
            way = "with the native objects of an earlier build" if kept else "in pure Python"
            print(f"Going on {way}: {failure}; its messages are above.", flush=True)
            for extension in self.extensions:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            self.extensions.clear()
            # Decided before the build ran: a wheel without binaries serves every platform.
            if wheel := self.distribution.get_command_obj("bdist_wheel", create=False):
                wheel.root_is_pure = True

    def run_cmake(self) -> None:
        """Run CMake in a directory that outlives editable installs, so that they are quick."""
        cmake, ninja, compiler = find_tool("cmake"), find_tool("ninja"), find_compiler()
        assert cmake and ninja and compiler
        tree = ROOT / "build" / f"native-{sysconfig.get_platform()}"
        configure = [cmake, "-S", str(ROOT), "-B", str(tree), "-G", "Ninja"]
        configure += [
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DCMAKE_CXX_COMPILER={';'.join(compiler)}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DOCVTP_CUDA={'OFF' if WHY_NO_CUDA else 'ON'}",
            f"-DOCVTP_WHY_NO_CUDA={WHY_NO_CUDA or ''}",
            f"-DOCVTP_CUDA_ARCHITECTURES={os.environ.get('OCVTP_CUDA_ARCHITECTURES', '')}",
        ]
        if not WHY_NO_CUDA:
            configure.append(f"-DCMAKE_CUDA_COMPILER={find_nvcc()}")
        # CMake remembers the tools of the first run; with other ones, start over.
        tools = tree / "configured_with.txt"
        wanted = "\n".join([*configure, os.environ.get("CXXFLAGS", ""), str(torch_versions())])
        if not tools.exists() or tools.read_text(encoding="utf-8") != wanted:
            shutil.rmtree(tree, ignore_errors=True)
            subprocess.run(configure, check=True)
            tools.write_text(wanted, encoding="utf-8")
        subprocess.run([cmake, "--build", str(tree)], check=True)
        prefix = str(Path(self.build_lib).resolve())
        subprocess.run([cmake, "--install", str(tree), "--prefix", prefix], check=True)

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
    if WHY_PURE
    else [Extension(f"{PACKAGE}.{name}", [], py_limited_api=True) for name in TARGETS],
    options={} if WHY_PURE else {"bdist_wheel": {"py_limited_api": OLDEST_PYTHON}},
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildPython},
)
