"""The native build's facts, and the sentences that stand in for them."""

from __future__ import annotations

import json
import platform
import sys
import warnings
from collections.abc import Iterator
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path

import pytest
import torch

import ocvtp_kernels
from ocvtp_kernels import installing, native
from ocvtp_kernels.native import BuildInfo, build_info
from ocvtp_kernels.ops import registry


@pytest.fixture
def package_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Stand an empty folder in for the package's, so that the real import looks there."""
    monkeypatch.setattr(ocvtp_kernels, "__path__", [str(tmp_path)])
    monkeypatch.setattr(installing, "PACKAGE", tmp_path)
    # An editable install adds a finder that would go to the real folder.
    monkeypatch.setattr(sys, "meta_path", [BuiltinImporter, FrozenImporter, PathFinder])
    names = [f"ocvtp_kernels.{name}" for name in ("_build_info", "_C", "_C_cuda")]
    loaded = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield tmp_path
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(loaded)


MEND = "run `OCVTP_NATIVE=1 pip install .` in a checkout"


def leave_why(folder: Path, is_chosen: bool = False) -> None:
    told = {"why": "it rained", "mend": "wait", "is_chosen": is_chosen}
    (folder / native.WHY_FILE).write_text(json.dumps(told))


def why_not(device_type: str) -> str:
    """As `native.missing_reason`, asked for the first time; there must be a reason."""
    reason: str | None = native.missing_reason.__wrapped__(device_type)
    assert reason is not None
    return reason


@pytest.fixture
def facts() -> BuildInfo:
    info = build_info()
    if isinstance(info, str):
        pytest.skip(info)
    return info


def test_compiler_and_flags_are_named(facts: BuildInfo) -> None:
    name, version = facts.compiler.split(" ")
    assert name.isalpha() and version[0].isdigit()
    assert facts.cxx_standard >= 201703
    assert facts.build_type and facts.flags
    assert facts.architecture == platform.machine()
    assert all(arch.replace(".", "").isalnum() for arch in facts.cuda_architectures)


def test_cpu_capability_agrees_with_the_system(facts: BuildInfo) -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or platform.machine() != "x86_64":
        pytest.skip("only Linux on x86 lists the same names")
    words = set(cpuinfo.read_text().replace("avx512_bf16", "avx512bf16").replace("_", "-").split())
    assert {"avx2", "fma", "avx512f"} <= facts.cpu_capability.keys()
    assert facts.cpu_capability == {name: name in words for name in facts.cpu_capability}


@pytest.mark.usefixtures("package_folder")
def test_absent_binary_says_what_to_do() -> None:
    assert build_info() == f"not built: nothing was ever built here; {MEND}"


def test_the_reason_that_the_build_left_is_told(package_folder: Path) -> None:
    leave_why(package_folder)
    assert build_info() == "not built: it rained; wait"
    assert why_not("cpu") == "the cpu kernels are not built: it rained; wait"


def test_binary_of_another_python_is_named(package_folder: Path) -> None:
    (package_folder / "_build_info.cpython-27-x.so").touch()
    info = build_info()
    assert isinstance(info, str)
    assert "_build_info.cpython-27-x.so" in info and platform.python_version() in info


def test_broken_binary_reports_the_loader_and_the_versions(package_folder: Path) -> None:
    binary = package_folder / "_build_info.abi3.so"
    binary.write_bytes(b"not a shared object")
    info = build_info()
    assert isinstance(info, str)
    assert binary.name in info
    assert platform.python_version() in info and torch.__version__ in info


def test_older_binary_is_reported(package_folder: Path) -> None:
    (package_folder / "_build_info.py").write_text("compiler = 'GNU 1'\n")
    info = build_info()
    assert isinstance(info, str)
    assert "cxx_standard" in info


@pytest.mark.usefixtures("package_folder")
def test_absent_kernels_say_what_to_do() -> None:
    for device_type in ("cpu", "cuda"):
        assert why_not(device_type) == (
            f"the {device_type} kernels are not built: nothing was ever built here; {MEND}"
        )


def test_broken_kernels_report_the_loader_and_the_versions(package_folder: Path) -> None:
    (package_folder / "_C.abi3.so").write_bytes(b"not a shared object")
    reason = why_not("cpu")
    assert "the cpu kernels are built, but _C does not load" in reason
    assert torch.__version__ in reason


def test_kernels_that_were_left_out_say_why(package_folder: Path) -> None:
    facts = (
        "compiler = build_type = flags = architecture = cuda_architectures = ''; cxx_standard = 1"
    )
    (package_folder / "_build_info.py").write_text(
        f"{facts}\nwhy_no_cuda = 'nvcc was not found'\ndef cpu_capability(): return {{}}\n"
    )
    (package_folder / "_C.py").touch()
    assert native.missing_reason.__wrapped__("cpu") is None
    assert why_not("cuda") == "the CUDA kernels were not built: nvcc was not found"


def test_without_kernels_the_cpu_runs_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    run = registry._if_built(lambda: "native", lambda: "plain")
    monkeypatch.setattr(native, "missing_reason", lambda _: None)
    assert run() == "native"
    monkeypatch.setattr(native, "missing_reason", lambda _: "not built")
    native._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="plain PyTorch, which is slower: not built"):
        assert run() == "plain"
    assert native.cpu_kernels() == "plain PyTorch: not built"


@pytest.mark.parametrize("is_chosen", [False, True])
def test_plain_pytorch_is_told_of_once_unless_it_was_chosen(
    package_folder: Path, monkeypatch: pytest.MonkeyPatch, is_chosen: bool
) -> None:
    leave_why(package_folder, is_chosen)
    monkeypatch.setattr(native, "missing_reason", native.missing_reason.__wrapped__)
    run = registry._if_built(lambda: "native", lambda: "plain")
    native._warn_once.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert [run(), run()] == ["plain", "plain"]
    finally:
        native._warn_once.cache_clear()
    said = [str(one.message) for one in caught]
    assert len(said) == (0 if is_chosen else 1)
    assert all(one.endswith("the cpu kernels are not built: it rained; wait") for one in said)
