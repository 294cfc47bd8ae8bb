"""The CUDA kernels that only prune calls, in the emulator, against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.csrc.device_cases import (
    DTYPES,
    EPS,
    INF,
    NAN,
    ROW_WIDTHS,
    DeviceCase,
    around,
    assert_near,
    fuzz,
    norm,
    norm_scale,
)

pytestmark = pytest.mark.usefixtures("loaded", "poisoned")
ops = torch.ops.ocvtp_emulated


def norm_slack(x: Tensor, rounded_sum: bool) -> Tensor:
    """What float32 arithmetic may add to the normalized values of a row.

    A few ulp of the largest, and of an ulp of the mean, which the float32 sum of two already has.
    """
    mean = x.mean(-1, keepdim=True)
    largest = (x - mean).abs().amax(-1, keepdim=True)
    slack = 2**-21 * largest
    return norm_scale(x) * (slack + 2**-23 * (mean.abs() + largest) if rounded_sum else slack)


@fuzz
def test_layer_norm(case: DeviceCase) -> None:
    # Half overflows at the last, and bfloat16 has no two numbers so close.
    mean = case.pick([0.0, 1000.0, 1e6][: 3 if case.dtype == torch.float32 else 2])
    shape = (case.between(1, 3), case.between(1, 3), case.pick(ROW_WIDTHS))
    x = case.rows(*shape, mean=mean, outlier=case.pick([0, 50, 100]))
    normed = ops.layer_norm(x, EPS)
    exact = x.double()
    assert_near(normed, norm(exact), norm_slack(exact, False))
    dense = x.contiguous()
    alone = ops.layer_norm(dense[-1:], EPS)
    assert torch.equal(alone, ops.layer_norm(dense, EPS)[-1:]), "an image alone differs"


def assert_statistics(got: Tensor, slots: Tensor, weight: Tensor, slack: Tensor) -> None:
    """Mean, deviation and constant of slots in float64, whose norm has this slack."""
    mean, deviation, constant = got.unbind(-1)
    largest = slots.abs().amax(-1)
    assert_near(mean, slots.mean(-1), 2**-21 * largest)
    assert_near(deviation, 1 / norm_scale(slots).squeeze(-1), 2**-21 * largest)
    size = weight.double().abs() * (slack + 2**-20 * norm(slots).abs())
    assert_near(constant, norm(slots) @ weight.double(), size.sum(-1))


@fuzz
def test_start(case: DeviceCase) -> None:
    width, outlier = case.pick(ROW_WIDTHS), case.pick([0, 64])
    tokens = case.rows(case.between(1, 2), case.between(1, 3), width, outlier=outlier)
    slots = case.rows(1, case.between(1, 5), width, mean=case.pick([0.0, 30.0]), outlier=outlier)
    weight = case.rows(width)
    x, normed, statistics = ops.start(tokens, slots, weight, EPS)
    exact, exact_slots = tokens.double(), slots.double()
    assert_near(x, norm(exact), norm_slack(exact, False))
    slack = norm_slack(exact_slots, False)
    assert_near(normed, norm(exact_slots), slack)
    assert_statistics(statistics, exact_slots, weight, slack)


@fuzz
def test_norm_slots(case: DeviceCase) -> None:
    shape = (case.between(1, 2), case.between(1, 3), case.pick([*ROW_WIDTHS, 8192]))
    outlier, mean = case.pick([0, 64]), case.pick([0.0, 300.0])
    x = case.rows(*shape, dtype=torch.float32, mean=mean, outlier=outlier)
    y, weight = case.rows(*shape, outlier=outlier), case.rows(shape[-1])
    total, normed, statistics = ops.norm_slots(x, y, weight, EPS)
    exact = x.double() + y.double()
    assert total.dtype == torch.float32 and normed.dtype == case.dtype
    assert_near(total, exact, 2**-23 * exact.abs())
    slack = norm_slack(exact, True)
    assert_near(normed, norm(exact), slack)
    assert_statistics(statistics, exact, weight, slack)


@fuzz
def test_bias_gelu(case: DeviceCase) -> None:
    shape = (case.between(1, 2), case.between(1, 3), case.pick(ROW_WIDTHS))
    x, bias = case.rows(*shape, deviation=4), case.rows(shape[-1])
    exact = x.double() + bias.double()
    ops.bias_gelu_(x, bias)
    assert_near(x, F.gelu(exact), 2**-22 * (1 + exact.abs()))
    assert around(x).isnan().all(), "wrote past the rows"


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_rows(dtype: torch.dtype) -> None:
    x = torch.full((3, 40), 7.0, dtype=dtype)
    x[1, 5], x[2, 5] = NAN, INF
    constant, *hidden = ops.layer_norm(x, EPS)
    assert (constant == 0).all()
    assert all(row.isnan().all() for row in hidden)
