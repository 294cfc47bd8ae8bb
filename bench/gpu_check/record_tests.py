"""A plugin of pytest that records what the tests launch on a GPU: see `bench.gpu_check.launches`.

``pytest --assert=plain -p bench.gpu_check.record_tests`` with the three variables below; each
process writes its own list. Kernels do not run, so assertions are evaluated for their launches
without being checked.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.gpu_check.binaries import write
from bench.gpu_check.launches import recording, zeros
from bench.rehearsal import standing_in
from tests import evaluated

ARCH, STAGE, FOLDER = "OCVTP_RECORD_CHIP", "OCVTP_RECORD_STAGE", "OCVTP_RECORD_FOLDER"
# The others trace the op, which launches nothing else.
EAGER_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
_stack = ExitStack()
_recorder: Any = None


def pytest_configure() -> None:
    """Before any test module is imported."""
    global _recorder
    evaluated.install()
    torch.testing.assert_close = lambda *_, **__: None
    torch.compile = lambda function, **_: function  # type: ignore[assignment]
    torch.library.opcheck = partial(torch.library.opcheck, test_utils=EAGER_CHECKS)
    torch.set_num_threads(1)
    _stack.enter_context(standing_in())
    _recorder = _stack.enter_context(recording(int(os.environ[ARCH])))
    _stack.enter_context(zeros())
    _recorder.stage = os.environ[STAGE]


def pytest_sessionfinish() -> None:
    """Writes what this process found."""
    path = Path(os.environ[FOLDER]) / f"{os.environ[STAGE]}-{os.getpid()}.json"
    write(path, int(os.environ[ARCH]), _recorder.found.values())
    _stack.close()
