"""The CPU kernels of rows, encode's and those of slots, against their formulas."""

from __future__ import annotations

import numpy as np

from tests.csrc.shapes import Array, Case, fuzz, wide
from tests.csrc.special import erfc, sigmoid

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
def test_add_layer_norm(case: Case) -> None:
    rows, width = case.size(9), case.size(140)
    x, y = case.numbers(rows, width, deviation=2, mean=3), case.numbers(rows, width)
    out = [case.unwritten(rows, width), case.unwritten(rows, width)]
    for total, normed in case.run(
        "add_layer_norm", rows, out, lambda *out: (x, y, width, NORM_EPS, *out)
    ):
        case.assert_near(total, x + y, 0)
        assert_normed(case, total, normed)


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
    rows, width = case.size(9), case.size(140)
    with_shift, with_norm = case.chance(50), case.chance(50)
    x = case.numbers(rows, 3, width, deviation=2)
    h_gates = case.numbers(rows, 3, width, deviation=2)
    h, shift, mass = case.numbers(rows, width), case.numbers(3, width), case.positive(rows)
    given = (x, h_gates, h, *((shift, mass) if with_shift else (None, None)), width, EPS, NORM_EPS)
    out = [case.unwritten(rows, width), case.unwritten(rows, width)][: 1 + with_norm]
    for state, *normed in case.run(
        "gru_gates", rows, out, lambda state, normed=None: (*given, state, normed)
    ):
        share = wide(mass) / (wide(mass) + case.rounded(EPS)) if with_shift else np.zeros(rows)
        inputs, hidden = wide(x) + share[:, None, None] * wide(shift), wide(h_gates)
        size = 1 + (np.abs(inputs) + np.abs(hidden) + np.abs(shift)).sum(1)
        reset, update = (sigmoid(inputs[:, i] + hidden[:, i]) for i in range(2))
        fresh = np.tanh(inputs[:, 2] + reset * hidden[:, 2])
        allowed = 8 * case.eps * size * (1 + np.abs(wide(h)))
        case.assert_near(state, fresh + update * (wide(h) - fresh), allowed)
        for rows_of in normed:
            assert_normed(case, state, rows_of)
