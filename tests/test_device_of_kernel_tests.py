"""Tests of kernels run on the GPU where there is one, and hand kernels tensors of that device."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import conftest

TESTS = Path(__file__).parent
MIXED = TESTS / "mixed_devices.py"


class Driver(NamedTuple):
    """Stands in for libcuda.so.1."""

    gpus: int
    error: int = 0

    def cuInit(self, flags: int) -> int:
        return self.error

    def cuDeviceGetCount(self, place: Any) -> int:
        place._obj.value = self.gpus
        return 0


@pytest.mark.parametrize(
    ("driver", "node", "there"),
    [
        (Driver(2), False, True),
        (Driver(0), True, False),
        (Driver(1, error=34), True, False),
        (None, True, True),
        (None, False, False),
    ],
    ids=["driver", "none visible", "stub", "no driver", "no GPU"],
)
def test_whether_there_is_a_gpu(
    driver: Driver | None, node: bool, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> Driver:
        assert name == "libcuda.so.1"
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(conftest, "GPU_NODE", str(tmp_path if node else tmp_path / "none"))
    assert conftest.gpu_is_here() == there


@pytest.mark.slow
def test_no_kernel_gets_a_tensor_of_another_device() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    # These run in the interpreter alone, which is not there.
    inside = ("test_interpreted.py", "triton_common/test_prepared.py", "bench/test_retention.py")
    others = (Path(__file__), *(TESTS / file for file in inside))
    files = [file for file in TESTS.rglob("test_*.py") if file not in others]
    files = [file for file in files if "mark.interpreter" in file.read_text("utf-8")]
    options = ["-p", "tests.on_meta", "--assert=plain", "-m", "interpreter", "-q", "-rfs"]
    command = [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", *files, MIXED]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**kept, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        list(map(str, command)), cwd=TESTS.parent, env=environment, capture_output=True, text=True
    )
    failed = re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    wrong = re.findall(r"^def (test_\w+)", MIXED.read_text("utf-8"), re.MULTILINE)
    place = MIXED.relative_to(TESTS.parent).as_posix()
    assert failed == [f"{place}::{name}" for name in wrong], done.stdout + done.stderr
    launches = dict(re.findall(r"^(\S+): (\d+) launches$", done.stdout, re.MULTILINE))
    for file in files:
        assert int(launches[file.relative_to(TESTS.parent).as_posix()]) > 0
