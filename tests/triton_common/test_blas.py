"""Products of half precision sum in float32 on a GPU, and torch's settings come back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ocvtp_kernels.blas import float32_sums

GPU = torch.device("cuda")
SETTINGS: Any = torch.backends.cuda.matmul
NAMES = (
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)


def now() -> list[bool]:
    return [getattr(SETTINGS, name) for name in NAMES]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = now()
    yield
    for name, value in zip(NAMES, before, strict=True):
        setattr(SETTINGS, name, value)


@pytest.mark.parametrize("given", [[True, True, True], [False, False, False], [True, False, True]])
def test_the_settings_hold_inside_and_come_back(given: list[bool]) -> None:
    for name, value in zip(NAMES, given, strict=True):
        setattr(SETTINGS, name, value)
    with pytest.raises(KeyError), float32_sums(GPU):
        assert now() == [False, False, False]
        with float32_sums(GPU):
            assert now() == [False, False, False]
        assert now() == [False, False, False]
        raise KeyError
    assert now() == given
    with float32_sums(torch.device("cpu")):
        assert now() == given


def test_a_split_setting_comes_back_too() -> None:
    name = NAMES[0]
    if not hasattr(SETTINGS, f"{name}_split_k"):
        pytest.skip("this torch does not tell whether sums may be split")
    setattr(SETTINGS, name, (False, False))
    with float32_sums(GPU):
        assert not getattr(SETTINGS, f"{name}_split_k")
    assert not getattr(SETTINGS, f"{name}_split_k")
    setattr(SETTINGS, name, True)


def test_threads_that_overlap_leave_what_the_first_found() -> None:
    setattr(SETTINGS, NAMES[0], True)
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with float32_sums(GPU):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait(10)
    with float32_sums(GPU):
        pass
    assert not getattr(SETTINGS, NAMES[0])
    leave.set()
    thread.join()
    assert getattr(SETTINGS, NAMES[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_long_sum_loses_nothing_on_the_way() -> None:
    # Narrow partial sums of a thousand would be off by about one.
    setattr(SETTINGS, NAMES[2], True)
    x = torch.full((64, 65536), 0.25, dtype=torch.float16, device="cuda")
    x[:, ::2] = -0.2498
    with float32_sums(x.device):
        got = x @ x.new_ones(65536, 64)
    exact = x.double().sum(1, keepdim=True).expand(-1, 64)
    assert (got.double() - exact).abs().max() <= exact.abs().max() * 2**-11
