"""Tests that are wrong on a GPU, for `tests.on_meta` to find; by itself pytest collects none."""

from __future__ import annotations

import pytest
import torch

from ocvtp_kernels import use_backend
from ocvtp_kernels.ops.slot_argmax.triton import slot_argmax
from tests.cases import DEVICE, random_tokens

pytestmark = pytest.mark.interpreter

HERE = random_tokens(1, 3, 8, dtype=torch.bfloat16)
THERE = HERE.to(DEVICE)


def test_a_launch() -> None:
    slot_argmax(HERE, HERE)


def test_a_launch_with_one_of_them() -> None:
    slot_argmax(THERE, HERE)


def test_a_launch_in_an_assertion_behind_one_that_has_no_values() -> None:
    assert slot_argmax(THERE, THERE)[0].cpu().sum() == 1
    assert slot_argmax(HERE, HERE)[0].sum() == 0


def test_an_op() -> None:
    with use_backend("triton"):
        torch.ops.ocvtp.slot_argmax(HERE, HERE)


def test_a_function() -> None:
    torch.add(HERE, THERE)


def test_a_comparison() -> None:
    torch.testing.assert_close(HERE, THERE)
