"""Tools of the native build: which are needed, which are found, and messages where one is missing.

Used by setup.py and, for the requirements of an isolated build, by build_backend.py.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
OLDEST_TORCH = (2, 10)  # its stable ABI is what the sources ask for
OLDEST_CMAKE = (3, 20)
MODES = ("auto", "0", "1", "cuda")


class Torch(NamedTuple):
    """A torch to compile beside: its headers and libraries."""

    folder: Path
    version: str
    cuda: str | None  # of a build for CUDA


class Pure(NamedTuple):
    """Why nothing native is built, and what to do about it."""

    why: str
    mend: str
    is_chosen: bool = False  # by OCVTP_NATIVE=0


def read_mode() -> str:
    """OCVTP_NATIVE; an unknown value ends the build."""
    mode = os.environ.get("OCVTP_NATIVE", "auto")
    if mode not in MODES:
        sys.exit(f"OCVTP_NATIVE must be auto, 0, 1 or cuda, not {mode!r}.")
    return mode


def find_tool(name: str, oldest: tuple[int, int] | None = None) -> str | None:
    """Look beside this Python first: a virtual environment need not be activated.

    With ``oldest``, only a tool that prints a version that is not older: a script beside this
    Python may not run in an isolated build.
    """
    for folders in (sysconfig.get_path("scripts"), os.environ.get("PATH", "")):
        path = shutil.which(name, path=folders)
        if path and (oldest is None or _version(path) >= oldest):
            return path
    return None


@cache
def _version(path: str) -> tuple[int, ...]:
    """The version that a program prints, empty where it does not run."""
    done = subprocess.run([path, "--version"], capture_output=True, text=True)
    found = re.search(r"(\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found and done.returncode == 0 else ()


def find_cmake() -> str | None:
    """A CMake that CMakeLists.txt takes."""
    return find_tool("cmake", OLDEST_CMAKE)


def find_ninja() -> str | None:
    """A Ninja that runs."""
    return find_tool("ninja", (0, 0))


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


def find_torch() -> Torch | None:
    """The first torch that is new enough: one that this Python imports, else one beside it.

    An isolated build does not import from the environment that it installs into, yet runs its
    Python. With the stable ABI headers and libraries are all that is needed of torch. The folder
    OCVTP_TORCH, where set, is the only candidate; a relative one is the checkout's.
    """
    if wanted := os.environ.get("OCVTP_TORCH"):
        folders = [ROOT / wanted]
    else:
        beside = PathFinder.find_spec("torch", _packages_beside())
        specs = (importlib.util.find_spec("torch"), beside)
        folders = [Path(spec.origin).parent for spec in specs if spec and spec.origin]
    for folder in folders:
        if not (folder / "version.py").exists():
            continue
        facts = runpy.run_path(str(folder / "version.py"))
        version = facts["__version__"]
        if tuple(map(int, version.split(".")[:2])) >= OLDEST_TORCH:
            return Torch(folder, version, facts["cuda"])
    return None


def _packages_beside() -> list[str]:
    """Where this Python's environment has its packages, whether it imports from there or not."""
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    settings = Path(sys.prefix) / "pyvenv.cfg"
    if not settings.exists():
        return [*places, site.getusersitepackages()]
    if re.search(r"(?im)^include-system-site-packages\s*=\s*true", settings.read_text("utf-8")):
        places += site.getsitepackages([sys.base_prefix])
    return places


def requirements() -> list[str]:
    """Requirements of an isolated build; none where nothing native would be built."""
    if read_mode() == "0" or find_compiler() is None:
        return []
    needs = {
        f"torch>={_dotted(OLDEST_TORCH)}": find_torch(),
        f"cmake>={_dotted(OLDEST_CMAKE)}": find_cmake(),
        "ninja": find_ninja(),
    }
    return [name for name, found in needs.items() if not found]


def why_pure(*, is_editable: bool = False) -> Pure | None:
    """Why nothing native can be built here, or None where it can."""
    build = _build(is_editable)
    if read_mode() == "0":
        return Pure("the build was told OCVTP_NATIVE=0", f"{build} in a checkout builds them", True)
    compiler = f"C++ compiler{_of('CXX')}"
    if find_compiler() is None:
        return Pure(
            f"the build found no {compiler}",
            f"install a C++ compiler and run {build} in a checkout",
        )
    needs = {
        f"torch {_dotted(OLDEST_TORCH)} or newer{_of('OCVTP_TORCH')}": find_torch(),
        f"cmake {_dotted(OLDEST_CMAKE)} or newer": find_cmake(),
        "ninja": find_ninja(),
    }
    missing = [name for name, found in needs.items() if not found]
    if not missing:
        return None
    # Build isolation brings them along.
    mend = f"run {build} in a checkout, without --no-build-isolation"
    return Pure(f"the build found no {', no '.join(missing)}", mend)


def failed_build(failure: str, *, is_editable: bool) -> Pure:
    """The result of a build that failed."""
    return Pure(failure, f"{_build(is_editable)} in a checkout shows all messages")


def why_no_cuda() -> str | None:
    """Why the CUDA object cannot be built, as `ocvtp doctor` says it, or None where it can."""
    nvcc, torch = find_nvcc(), find_torch()
    if nvcc is None:
        return "nvcc was not found"
    if read_mode() == "cuda":
        return None
    if torch is None or torch.cuda is None:
        return "torch has no CUDA (OCVTP_NATIVE=cuda builds it all the same)"
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.", output)
    if release and release[1] == torch.cuda.split(".")[0]:
        return None
    own = release[1] if release else "an unknown version"
    return f"nvcc is of CUDA {own}, torch of CUDA {torch.cuda}"


def first_error(output: str) -> str:
    """The first error in a build's output: a compiler's, else CMake's, else the last line."""
    for pattern in (r"^.*\berror: .*$", r"^CMake Error.*\n(?:\s*\n)?(?:[ \t]+\S.*\n?)+"):
        if found := re.search(pattern, output, re.MULTILINE):
            return " ".join(found[0].split())
    return output.strip().splitlines()[-1] if output.strip() else "it said nothing"


def _build(is_editable: bool) -> str:
    """The command that builds the native objects, or shows why it cannot."""
    return f"`OCVTP_NATIVE=1 pip install {'-e ' if is_editable else ''}.`"


def _of(variable: str) -> str:
    """The variable that chose what is missing, where one did."""
    return f" ({variable}={os.environ[variable]})" if os.environ.get(variable) else ""


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
