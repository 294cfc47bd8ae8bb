"""Wheels: one binary for every Python and torch, and pure Python where nothing can be compiled.

Editable installs: what they load is replaced whole, or stays.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
import torch as installed_torch

from tests.build_cases import ROOT, said_by, tools_or_skip

pytestmark = pytest.mark.checkout
SOURCES = ("csrc", "ocvtp_kernels", "scripts", "CMakeLists.txt", "setup.py", "pyproject.toml")
WHY = "ocvtp_kernels/why_not_native.json"
OWN_LIBRARIES = {"libtorch_cpu.so", "libtorch.so", "libc10.so"}
IMPORT = """
import sys
# An editable install adds a finder that would go to the sources.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path.insert(0, sys.argv[1])
import ocvtp_kernels, ocvtp_kernels.native as native
assert ocvtp_kernels.__file__.startswith(sys.argv[1]), ocvtp_kernels.__file__
print(native.missing_reason("cpu") or "native")
"""


# As pip isolates a build: its Python stays, but the packages of its environment are out of sight.
ISOLATED = """
import sys, sysconfig
hidden = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
sys.path[:] = [sys.argv[1], "scripts", *(path for path in sys.path if path not in hidden)]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import importlib.util
assert importlib.util.find_spec("torch") is None
import build_backend
"""
BUILD_EDITABLE = "from setuptools import build_meta; build_meta.build_editable('wheels')"
NEEDED_BY_SCM = ("vcs_versioning", "packaging", "tomli", "typing_extensions")
VERSION = """
from setuptools import build_meta
import sys
print(build_meta.prepare_metadata_for_build_wheel(sys.argv[1]))
"""
OLD = {"_C.abi3.so", "_C_cuda.abi3.so", "_build_info.abi3.so"}


def copy_sources(folder: Path) -> Path:
    """A copy that no earlier build has left anything in."""
    source = folder / "source"
    source.mkdir()
    ignore = shutil.ignore_patterns("*.so", "__pycache__", Path(WHY).name)
    for name in (*SOURCES, "README.md", "LICENSE"):
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=ignore)
        else:
            shutil.copy(path, source / name)
    return source


def build_wheel(folder: Path, **environment: str) -> Path:
    """Builds in a copy of the sources; CUDA has its own tests."""
    source = copy_sources(folder)
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder]
    command = [sys.executable, "-m", "pip", "wheel", *options, source]
    said_by(command, folder, CUDACXX="/nonexistent", **environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def what_it_imports(wheel: Path, folder: Path) -> str:
    """The kernels' state in an install of the wheel: native, or why not."""
    target = folder / "installed"
    options = ["--no-deps", "--no-index", "--target", target]
    said_by([sys.executable, "-m", "pip", "install", *options, wheel], folder)
    return said_by([sys.executable, "-c", IMPORT, target], folder).strip()


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of torch that a published wheel is compiled beside."""
    torch = tmp_path_factory.mktemp("headers") / "torch"
    torch.mkdir()
    (torch / "include").symlink_to(Path(installed_torch.__file__).parent / "include")
    (torch / "version.py").write_text("__version__ = '2.10.0'\ncuda = None\n")
    return torch


@pytest.fixture(scope="module")
def native_wheel(tmp_path_factory: pytest.TempPathFactory, headers: Path) -> Path:
    tools_or_skip("cmake", "ninja", "c++")
    folder = tmp_path_factory.mktemp("native")
    return build_wheel(folder, OCVTP_NATIVE="1", OCVTP_TORCH=str(headers))


def needed_by(wheel: Path, folder: Path) -> set[tuple[str, str]]:
    """The libraries that the kernels ask for, and where they would look for them."""
    (read,) = tools_or_skip("readelf")
    zipfile.ZipFile(wheel).extract("ocvtp_kernels/_C.abi3.so", folder)
    said = said_by([read, "--dynamic", folder / "ocvtp_kernels" / "_C.abi3.so"], folder)
    return set(re.findall(r"\((NEEDED|RUNPATH|RPATH)\).*\[(.*)\]", said))


@pytest.mark.slow
def test_a_wheel_is_for_every_python(native_wheel: Path, tmp_path: Path) -> None:
    assert re.fullmatch(r"ocvtp_kernels-0\.1\.0\.dev0-cp310-abi3-\w+\.whl", native_wheel.name)
    inside = zipfile.ZipFile(native_wheel).namelist()
    binaries = {name for name in inside if name.endswith(".so")}
    assert binaries == {f"ocvtp_kernels/{name}.abi3.so" for name in ("_C", "_build_info")}
    assert WHY not in inside
    assert what_it_imports(native_wheel, tmp_path) == "native"


@pytest.mark.slow
def test_the_binaries_keep_to_the_limited_api(native_wheel: Path) -> None:
    (audit,) = tools_or_skip("abi3audit")
    said_by([audit, "--strict", native_wheel], native_wheel.parent)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="auditwheel is for Linux")
def test_only_torch_is_needed_beside_the_system(native_wheel: Path) -> None:
    (audit,) = tools_or_skip("auditwheel")
    said = said_by([audit, "show", "--json", native_wheel], native_wheel.parent)
    report = json.loads(said[said.index("{") : said.rindex("}") + 1])
    print(f"symbols: {report['sym_tag']}, {report['versioned_symbols']}")
    assert report["external_libs"].keys() <= OWN_LIBRARIES
    assert not report["unsupported_isa"]
    # What libc and libstdc++ ask for comes from the headers built with; libm would be our own.
    libm = [tag.removeprefix("GLIBC_") for tag in report["versioned_symbols"].get("libm.so.6", [])]
    assert all(tuple(map(int, tag.split("."))) <= (2, 28) for tag in libm)


def test_without_a_compiler_a_wheel_is_pure_python(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, OCVTP_NATIVE="auto", CXX="/nonexistent")
    assert wheel.name == "ocvtp_kernels-0.1.0.dev0-py3-none-any.whl"  # sources without Git
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    assert what_it_imports(wheel, tmp_path) == (
        "the cpu kernels are not built: the build found no C++ compiler (CXX=/nonexistent); install"
        " a C++ compiler and run `OCVTP_NATIVE=1 pip install .` in a checkout"
    )


def test_the_version_is_the_tag(tmp_path: Path) -> None:
    (git,) = tools_or_skip("git")
    source = copy_sources(tmp_path)
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    for command in (
        ("init", "--quiet"),
        ("add", "pyproject.toml"),
        (*who, "commit", "--quiet", "--message", "first"),
        ("tag", "v1.2.3"),
    ):
        said_by([git, *command], source)

    def version(**settings: str) -> str:
        made = tempfile.mkdtemp(dir=tmp_path)
        said = said_by([sys.executable, "-c", VERSION, made], source, OCVTP_NATIVE="0", **settings)
        return said.splitlines()[-1].removeprefix("ocvtp_kernels-").removesuffix(".dist-info")

    assert version() == "1.2.3"
    said_by([git, *who, "commit", "--quiet", "--allow-empty", "--message", "next"], source)
    assert version() == "1.2.4.dev1"
    # As a wheel with CUDA kernels is named.
    local = "1.2.3+cu12"
    assert version(SETUPTOOLS_SCM_PRETEND_VERSION_FOR_OCVTP_KERNELS=local) == local


@pytest.fixture
def failing(tmp_path: Path) -> dict[str, str]:
    """The settings of a build whose compiler compiles nothing."""
    tools_or_skip("cmake", "ninja", "c++")
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'x.cpp:1: fatal error: nothing compiles'\nexit 1\n")
    compiler.chmod(0o755)
    return {"OCVTP_NATIVE": "auto", "CXX": str(compiler)}


def test_an_editable_build_that_fails_says_why(tmp_path: Path, failing: dict[str, str]) -> None:
    source = copy_sources(tmp_path)
    said_by([sys.executable, "-c", BUILD_EDITABLE], source, **failing)
    told = json.loads((source / WHY).read_text())
    assert told["why"] == "the native build failed: x.cpp:1: fatal error: nothing compiles"
    assert "`OCVTP_NATIVE=1 pip install -e .`" in told["mend"] and not told["is_chosen"]


@pytest.mark.slow
def test_a_wheel_that_does_not_compile_says_why(tmp_path: Path, failing: dict[str, str]) -> None:
    wheel = build_wheel(tmp_path, **failing)
    assert wheel.name.endswith("-py3-none-any.whl")
    said = what_it_imports(wheel, tmp_path)
    assert "not built: the native build failed: x.cpp:1: fatal error: nothing compiles; " in said
    assert said.endswith("`OCVTP_NATIVE=1 pip install .` in a checkout shows all messages")


def run_isolated(source: Path, script: str, **environment: str) -> str:
    """What lines behind `ISOLATED` print, in a copy of the sources; what builds need is there."""
    seen = source.parent / "seen"
    seen.mkdir()
    found = importlib.util.find_spec("setuptools")
    assert found is not None and found.origin is not None
    packages = Path(found.origin).parents[1]
    for name in ("setuptools", "_distutils_hack", *NEEDED_BY_SCM):
        for path in packages.glob(f"{name}*"):
            (seen / path.name).symlink_to(path)
    command = [sys.executable, "-c", ISOLATED + script, seen]
    return said_by(command, source, CUDACXX="/nonexistent", **environment)


@pytest.mark.parametrize("compiler", ["", "/nonexistent"])
def test_torch_is_not_fetched_where_it_is_installed_or_of_no_use(
    tmp_path: Path, compiler: str
) -> None:
    ask = "".join(
        f"print(build_backend.get_requires_for_build_{kind}())\n"
        for kind in ("wheel", "editable", "sdist")
    )
    source = copy_sources(tmp_path)
    said = run_isolated(source, ask, OCVTP_NATIVE="auto", CXX=compiler).splitlines()
    asked = [line for line in said if line.startswith("[")]
    assert len(asked) == 3 and "torch" not in "".join(asked)


@pytest.mark.slow
def test_an_isolated_build_takes_the_torch_beside_it(native_wheel: Path, tmp_path: Path) -> None:
    build = f"print(build_backend.build_wheel({str(tmp_path)!r}))"
    run_isolated(copy_sources(tmp_path), build, OCVTP_NATIVE="1")
    (wheel,) = tmp_path.glob("*-abi3-*.whl")
    assert what_it_imports(wheel, tmp_path) == "native"
    # Beside headers alone the same is linked, by names alone, so that it loads beside any torch.
    needed = needed_by(wheel, tmp_path / "beside_torch")
    assert ("NEEDED", "libtorch_cpu.so") in needed
    assert needed_by(native_wheel, tmp_path / "beside_headers") == needed


def leave_old_objects(source: Path) -> Path:
    package = source / "ocvtp_kernels"
    for name in OLD:
        (package / name).write_text("old")
    return package


def objects_in(package: Path) -> dict[str, str]:
    return {path.name: path.read_text("latin-1") for path in package.glob("*.so*")}


@pytest.mark.parametrize("way", ["auto", "1", "killed"])
def test_a_build_that_fails_leaves_the_old_objects(tmp_path: Path, way: str) -> None:
    tools_or_skip("cmake", "ninja", "c++")
    source = copy_sources(tmp_path)
    package = leave_old_objects(source)
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f"#!/bin/sh\ntouch {tmp_path}/begun\n{'sleep 60' if way == 'killed' else 'exit 1'}\n"
    )
    compiler.chmod(0o755)
    settings = {"CXX": str(compiler), "OCVTP_NATIVE": "auto" if way == "auto" else "1"}
    build = subprocess.Popen(
        [sys.executable, "-c", BUILD_EDITABLE],
        cwd=source,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    if way == "killed":
        while not (tmp_path / "begun").exists():
            assert build.poll() is None
            time.sleep(0.05)
        os.killpg(build.pid, signal.SIGKILL)
    said, _ = build.communicate()
    assert (build.returncode == 0) is (way == "auto"), said
    if way == "auto":
        assert "Going on with the native objects of an earlier build: the native build" in said
    assert objects_in(package) == dict.fromkeys(OLD, "old")


def test_a_pure_editable_install_has_no_objects(tmp_path: Path) -> None:
    source = copy_sources(tmp_path)
    package = leave_old_objects(source)
    said_by([sys.executable, "-c", BUILD_EDITABLE], source, OCVTP_NATIVE="0")
    assert objects_in(package) == {}
    assert "OCVTP_NATIVE=0" in (source / WHY).read_text()


@pytest.mark.slow
def test_new_objects_take_the_place_of_the_old_by_a_rename(
    native_wheel: Path, headers: Path
) -> None:
    source = native_wheel.parent / "source"
    package = leave_old_objects(source)
    (source / WHY).write_text("of an earlier build")
    with (package / "_C.abi3.so").open() as in_use:
        settings = {"OCVTP_NATIVE": "1", "OCVTP_TORCH": str(headers), "CUDACXX": "/nonexistent"}
        said_by([sys.executable, "-c", BUILD_EDITABLE], source, **settings)
        assert in_use.read() == "old"
    found = objects_in(package)
    assert set(found) == {"_C.abi3.so", "_build_info.abi3.so"}
    assert "old" not in found.values()
    assert not (source / WHY).exists()
