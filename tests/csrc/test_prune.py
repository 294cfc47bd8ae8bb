"""The CPU kernels that only prune calls, against their formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from tests.csrc.shapes import NORM_EPS, Array, Case, assert_normed, fuzz, wide
from tests.csrc.special import erfc

pytestmark = pytest.mark.usefixtures("kernels")


@fuzz
def test_layer_norm(case: Case) -> None:
    case.may_be_of_bfloat16()
    given = case.rows(1, case.size(9), case.size(140))
    _, rows, width = given.x.shape
    stride, flat = given.field[2], case.stored(given.field[0])
    x = as_strided(case.seen(flat), (rows, width), given.x.strides[1:])
    out = [case.stored(case.unwritten(rows, width))]
    for (normed,) in case.run(
        "layer_norm", rows, out, lambda normed: (flat, stride, width, NORM_EPS, normed)
    ):
        assert_normed(case, x, normed)


@fuzz
def test_norm_slots(case: Case) -> None:
    rows, width, with_sum = case.size(9), case.size(140), case.chance(50)
    x, y = case.numbers(rows, width, deviation=2, mean=3), case.numbers(rows, width)
    weight = case.numbers(width)
    slots = x + y if with_sum else x
    out = [case.unwritten(rows, width), case.unwritten(rows, 3), case.unwritten(rows, width)]

    def fields(normed: Array, statistics: Array, total: Array | None = None) -> tuple[Any, ...]:
        given = (x, y if with_sum else None, weight, width, NORM_EPS)
        return (*given, total, normed, statistics)

    for normed, statistics, *total in case.run("norm_slots", rows, out[: 2 + with_sum], fields):
        for sums in total:
            case.assert_near(sums, slots, 0)
        assert_normed(case, slots, normed)
        mean, deviation, constant = statistics.T
        lost = (16 + width / 16) * case.eps * np.abs(wide(slots)).max(1)
        case.assert_near(mean, wide(slots).mean(1), lost)
        off = wide(slots) - wide(slots).mean(1)[:, None]
        variance = np.square(off).mean(1) + case.rounded(NORM_EPS)
        case.assert_near(deviation, np.sqrt(variance), lost + 4 * case.eps * np.sqrt(variance))
        dots = wide(normed) * wide(weight)
        case.assert_near(constant, dots.sum(1), 16 * case.eps * np.abs(dots).sum(1))


@fuzz
def test_bias_gelu(case: Case) -> None:
    rows, width = case.size(9), case.size(140)
    x, bias = case.numbers(rows, width, deviation=3), case.numbers(width)
    for (activated,) in case.run("bias_gelu", rows, [x], lambda x: (x, bias, width)):
        total = wide(x + bias)
        want = total * erfc(-total * np.sqrt(np.longdouble(0.5))) / 2
        case.assert_near(activated, want, 4 * case.eps * (np.abs(want) + np.abs(total)))
