"""The CPU kernels of rows, encode's and those of slots, against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from tests.csrc.shapes import Array, Case, fuzz, wide
from tests.csrc.special import erfc, sigmoid

pytestmark = pytest.mark.usefixtures("kernels")

EPS, NORM_EPS = 1e-3, 1e-5


def assert_normed(case: Case, x: Array, normed: Array) -> None:
    x = wide(x)
    off = x - x.mean(-1, keepdims=True)
    scale = 1 / np.sqrt(np.square(off).mean(-1, keepdims=True) + case.rounded(NORM_EPS))
    # A row of almost equal numbers keeps only what its deviation leaves of their bits.
    lost = (16 + x.shape[-1] / 16) * case.eps * (np.abs(x).max(-1, keepdims=True) * scale + 1)
    case.assert_near(normed, off * scale, lost * (1 + np.abs(off * scale)))


@fuzz
def test_layer_norm(case: Case) -> None:
    x = case.rows(1, case.size(9), case.size(140))
    _, rows, width = x.x.shape
    flat, _, stride = x.field
    out = [case.unwritten(rows, width)]
    for (normed,) in case.run(
        "layer_norm", rows, out, lambda normed: (flat, stride, width, NORM_EPS, normed)
    ):
        assert_normed(case, x.x[0], normed)


@fuzz
def test_norm_slots(case: Case) -> None:
    rows, width, with_y = case.size(9), case.size(140), case.chance(50)
    x, y = case.numbers(rows, width, deviation=2, mean=3), case.numbers(rows, width)
    weight = case.numbers(width)
    out = [case.unwritten(rows, width), case.unwritten(rows, 3), case.unwritten(rows, width)]
    for normed, statistics, *total in case.run(
        "norm_slots",
        rows,
        out[: 2 + with_y],
        lambda normed, statistics, total=None: (
            *(x, y if with_y else None, weight, width, NORM_EPS),
            *(total, normed, statistics),
        ),
    ):
        for added in total:
            case.assert_near(added, x + y, 0)
        slots = total[0] if total else x
        assert_normed(case, slots, normed)
        exact = wide(slots)
        mean = exact.mean(-1)
        deviation = np.sqrt(exact.var(-1) + case.rounded(NORM_EPS))
        largest = np.abs(exact).max(-1)
        lost = (16 + width / 16) * case.eps
        case.assert_near(statistics[:, 0], mean, lost * largest)
        case.assert_near(statistics[:, 1], deviation, lost * (largest + deviation))
        terms = wide(normed) * weight
        dots = statistics[:, 2]
        case.assert_near(dots, terms.sum(-1), 32 * case.eps * np.abs(terms).sum(-1))


@fuzz
def test_bias_gelu(case: Case) -> None:
    rows, width = case.size(9), case.size(140)
    x, bias = case.numbers(rows, width, deviation=3), case.numbers(width)
    for (activated,) in case.run("bias_gelu", rows, [x], lambda x: (x, bias, width)):
        total = wide(x + bias)
        want = total * erfc(-total * np.sqrt(np.longdouble(0.5))) / 2
        case.assert_near(activated, want, 4 * case.eps * (np.abs(want) + np.abs(total)))


@fuzz
def test_slot_mass(case: Case) -> None:
    rows, width = case.size(20), case.size(140)
    x = case.numbers(rows, width)
    for (mass,) in case.run(
        "slot_mass", rows, [case.unwritten(rows)], lambda mass: (x, width, mass)
    ):
        case.assert_near(mass, wide(x).sum(1), 16 * case.eps * np.abs(wide(x)).sum(1))


@fuzz
def test_per_mass(case: Case) -> None:
    rows, width, with_dot = case.size(20), case.size(140), case.chance(50)
    x, y, mass = case.numbers(rows, width), case.numbers(rows, width), case.positive(rows)
    out = [case.unwritten(rows, width), case.unwritten(rows)][: 1 + with_dot]
    for scaled, *dot in case.run(
        "per_mass",
        rows,
        out,
        lambda scaled, dot=None: (x, y if with_dot else None, mass, width, EPS, scaled, dot),
    ):
        want = wide(x) / (wide(mass) + case.rounded(EPS))[:, None]
        case.assert_near(scaled, want, 4 * case.eps * np.abs(want))
        for sums in dot:
            allowed = 32 * case.eps * np.abs(want * y).sum(1)
            case.assert_near(sums, (want * y).sum(1), allowed)


@fuzz
def test_gru_gates(case: Case) -> None:
    images, states, width = case.between(1, 3), case.size(9), case.size(140)
    rows, stride = images * states, 3 * width + case.between(0, 3)
    with_shift, with_norm, of_normed = (case.chance(50) for _ in range(3))
    x, mass = case.numbers(rows, 3, width, deviation=2), case.positive(rows)
    flat = case.numbers((states - 1) * stride + 3 * width, deviation=2)
    h, shift = case.numbers(states, width), case.numbers(3, width)
    statistics, sums, bias = (
        case.numbers(*shape) for shape in ((states, 3), (3, width), (3, width))
    )
    given = (x, flat, h, states, stride, *((shift, mass) if with_shift else (None, None)))
    given = (*given, *((statistics, sums, bias) if of_normed else (None, None, None)))
    out = [case.unwritten(rows, width), case.unwritten(rows, width)][: 1 + with_norm]
    for state, *normed in case.run(
        "gru_gates",
        rows,
        out,
        lambda state, normed=None: (*given, width, EPS, NORM_EPS, state, normed),
    ):
        share = wide(mass) / (wide(mass) + case.rounded(EPS)) if with_shift else np.zeros(rows)
        steps = [step * flat.itemsize for step in (stride, width, 1)]
        terms = [wide(as_strided(flat, (states, 3, width), steps))]
        if of_normed:
            mean, deviation = (wide(statistics[:, i, None, None]) for i in range(2))
            terms = [deviation * terms[0], mean * sums, wide(bias)[None] + 0 * terms[0]]
        terms = [np.tile(term, (images, 1, 1)) for term in terms]
        inputs, hidden = wide(x) + share[:, None, None] * wide(shift), sum(terms[1:], terms[0])
        parts = sum(map(np.abs, terms), np.abs(inputs) + np.abs(shift))
        reset, update = (sigmoid(inputs[:, i] + hidden[:, i]) for i in range(2))
        fresh = np.tanh(inputs[:, 2] + reset * hidden[:, 2])
        kept = np.tile(wide(h), (images, 1))
        allowed = 8 * case.eps * (1 + parts.sum(1)) * (1 + np.abs(kept))
        case.assert_near(state, fresh + update * (kept - fresh), allowed)
        for rows_of in normed:
            assert_normed(case, state, rows_of)
