"""Drives CMakeLists.txt for the optional native objects; the metadata lives in pyproject.toml.

OCVTP_NATIVE at build time: "auto" (default) builds them if the tools are there and goes on in pure
Python otherwise, with one sentence; "0" never builds them; "1" makes anything missing an error.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = "ocvtp_kernels"
TARGETS = ["_build_info"]

MODE = os.environ.get("OCVTP_NATIVE", "auto")
if MODE not in ("auto", "0", "1"):
    sys.exit(f"OCVTP_NATIVE must be auto, 0 or 1, not {MODE!r}.")


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


def missing_tools() -> list[str]:
    """Name what the native build needs and this machine lacks."""
    compiler = "a C++ compiler" + (f" (CXX={os.environ['CXX']})" if os.environ.get("CXX") else "")
    found = {
        compiler: find_compiler(),
        "cmake": find_tool("cmake"),
        "ninja": find_tool("ninja"),
        "pybind11": importlib.util.find_spec("pybind11"),
    }
    return [name for name, at in found.items() if not at]


def why_pure() -> str | None:
    """Return the sentence that says why nothing native is built, or None where it is."""
    if MODE == "0":
        return "Going on in pure Python: OCVTP_NATIVE=0 asks for it."
    if missing := missing_tools():
        if MODE == "1":
            sys.exit(f"OCVTP_NATIVE=1, but the native build lacks {', '.join(missing)}.")
        return f"Going on in pure Python: the native build lacks {', '.join(missing)}."
    return None


WHY_PURE = why_pure()


class BuildPython(build_py):
    """Says once why a build is pure, and clears binaries that an editable install would reuse."""

    def run(self) -> None:
        """Copy the modules."""
        if WHY_PURE:
            print(WHY_PURE)
        if self.editable_mode:
            for target in TARGETS:
                suffix = sysconfig.get_config_var("EXT_SUFFIX")
                (ROOT / PACKAGE / f"{target}{suffix}").unlink(missing_ok=True)
        super().run()


class CMakeBuild(build_ext):
    """Configures, builds and installs the CMake project into the build tree."""

    def build_extensions(self) -> None:
        """Build every target at once; under "auto" a failure leaves a pure-Python install."""
        try:
            self.run_cmake()
        except subprocess.CalledProcessError as error:
            failure = f"the native build failed: cmake ended with status {error.returncode}"
            if MODE == "1":
                sys.exit(f"OCVTP_NATIVE=1, but {failure}; its messages are above.")
            print(f"Going on in pure Python: {failure}; its messages are above.", flush=True)
            for extension in self.extensions:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            self.extensions.clear()
            # Decided before the build ran: a wheel without binaries serves every platform.
            if wheel := self.distribution.get_command_obj("bdist_wheel", create=False):
                wheel.root_is_pure = True

    def run_cmake(self) -> None:
        """Run CMake in a directory that outlives editable installs, so that they are quick."""
        import pybind11

        cmake, ninja, compiler = find_tool("cmake"), find_tool("ninja"), find_compiler()
        assert cmake and ninja and compiler
        tree = ROOT / "build" / f"native-{sysconfig.get_config_var('SOABI')}"
        configure = [cmake, "-S", str(ROOT), "-B", str(tree), "-G", "Ninja"]
        configure += [
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DCMAKE_CXX_COMPILER={';'.join(compiler)}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        # CMake remembers the tools of the first run; with other ones, start over.
        tools = tree / "configured_with.txt"
        wanted = "\n".join([*configure, os.environ.get("CXXFLAGS", "")])
        if not tools.exists() or tools.read_text(encoding="utf-8") != wanted:
            shutil.rmtree(tree, ignore_errors=True)
            subprocess.run(configure, check=True)
            tools.write_text(wanted, encoding="utf-8")
        subprocess.run([cmake, "--build", str(tree)], check=True)
        prefix = str(Path(self.build_lib).resolve())
        subprocess.run([cmake, "--install", str(tree), "--prefix", prefix], check=True)


setup(
    ext_modules=[] if WHY_PURE else [Extension(f"{PACKAGE}.{name}", []) for name in TARGETS],
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildPython},
)
