from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import ocvtp_kernels as ocvtp
from ocvtp_kernels import backends
from tests.ops.cases import prune


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


def test_an_op_without_the_kernel_says_why() -> None:
    with (
        ocvtp.use_backend("cpu"),
        pytest.raises(ocvtp.BackendUnavailable, match="resolve_picks has no cpu kernel"),
    ):
        torch.ops.ocvtp.resolve_picks(
            torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2), None, 1, 3
        )


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


def test_backends_agree() -> None:
    arguments = prune(dtype=torch.float64)
    with ocvtp.use_backend("reference"):
        tokens, ids = torch.ops.ocvtp.prune(*arguments)
    assert torch.equal(torch.ops.ocvtp.prune(*arguments)[0], tokens)
    assert torch.equal(torch.ops.ocvtp.prune(*arguments)[1], ids)
