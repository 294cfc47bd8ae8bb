from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import ocvtp_kernels as ocvtp
from ocvtp_kernels import backends
from tests.ops.cases import ARGUMENTS, op, outputs


def test_unknown_names_are_refused() -> None:
    with (
        pytest.raises(ValueError, match="backend: expected one of"),
        ocvtp.use_backend("cudnn"),
    ):
        pass


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_an_impossible_choice_says_why(name: str) -> None:
    with pytest.raises(ocvtp.BackendUnavailable, match=name), ocvtp.use_backend(name):
        pass


def test_an_op_without_the_kernel_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends._kernels, "lone", {"reference": print})
    with (
        ocvtp.use_backend("cpu"),
        pytest.raises(ocvtp.BackendUnavailable, match="lone has no cpu kernel"),
    ):
        backends.choose("lone", torch.device("cpu"))


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_every_op_runs_on_either(name: str, backend: str) -> None:
    with ocvtp.use_backend(backend):
        forced = outputs(op(name)(*ARGUMENTS[name](dtype=torch.float64)))
    for a, b in zip(forced, outputs(op(name)(*ARGUMENTS[name](dtype=torch.float64))), strict=True):
        torch.testing.assert_close(a, b)


def test_a_kernel_for_other_devices_says_why() -> None:
    assert backends.why_not("prune", "cpu", "cuda") is not None
    assert backends.why_not("prune", "cpu", "cpu") is None
    assert backends.chosen("prune", "cpu") == "cpu"
    assert backends.chosen("prune", "cuda") == "reference"


def test_the_choice_ends_with_its_block_and_stays_in_its_thread() -> None:
    with ThreadPoolExecutor(1) as other, ocvtp.use_backend("reference"):
        assert backends.chosen("prune", "cpu") == "reference"
        assert other.submit(backends.chosen, "prune", "cpu").result() == "cpu"
    assert backends.chosen("prune", "cpu") == "cpu"
