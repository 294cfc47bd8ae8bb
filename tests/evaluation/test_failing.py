from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ocvtp_kernels.evaluation.lmms_eval.failing import (
    EvaluationFailed,
    fail_on_errors,
    failing,
)
from tests.build_cases import ROOT

# As lmms-eval goes on after an error.
SWALLOWED = """
from ocvtp_kernels.evaluation.lmms_eval.failing import failing
try:
    with failing():
        raise RuntimeError("broken on purpose")
except Exception:
    print("swallowed")
"""


def generate(number: int) -> int:
    """Doubles."""
    if number < 0:
        raise ValueError("number: expected none below 0")
    return 2 * number


def test_a_method_works_as_before_until_it_fails() -> None:
    model = SimpleNamespace(generate=generate)
    fail_on_errors(model, "generate")
    assert model.generate(3) == model.generate(number=3) == 6
    assert model.generate.__doc__ == "Doubles."
    with pytest.raises(EvaluationFailed, match="ValueError: number: expected none") as failed:
        model.generate(-1)
    assert isinstance(failed.value.__cause__, ValueError)


def test_what_lmms_eval_catches_does_not_catch_it() -> None:
    assert not issubclass(EvaluationFailed, Exception)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_process_anyway_passes(error: type[BaseException]) -> None:
    with pytest.raises(error), failing():
        raise error


def test_the_process_ends_with_an_error() -> None:
    command = [sys.executable, "-c", SWALLOWED]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert "RuntimeError: broken on purpose" in done.stderr
