"""The CPU kernels of rows, encode's and those of slots, against their formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import as_strided

from tests.csrc.shapes import (
    ISAS,
    Array,
    Case,
    fuzz,
    is_alike,
    module,
    of_half_bits,
    on_every_isa,
    wide,
)
from tests.csrc.special import erfc, sigmoid

pytestmark = pytest.mark.usefixtures("kernels")

EPS, NORM_EPS = 1e-3, 1e-5


def assert_normed(case: Case, x: Array, normed: Array) -> None:
    x = wide(x)
    off = x - x.mean(-1, keepdims=True)
    scale = 1 / np.sqrt(np.square(off).mean(-1, keepdims=True) + case.rounded(NORM_EPS))
    # A row of almost equal numbers keeps only what its deviation leaves of their bits.
    lost = (16 + x.shape[-1] / 16) * case.eps * (np.abs(x).max(-1, keepdims=True) * scale + 1)
    allowed = lost + (lost + case.lost) * np.abs(off * scale)
    case.assert_near(case.seen(normed), off * scale, allowed)


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


@fuzz
def test_slot_mass(case: Case) -> None:
    case.may_be_of_bfloat16()
    rows, width = case.size(20), case.size(140)
    x = case.stored(case.numbers(rows, width))
    for (mass,) in case.run(
        "slot_mass", rows, [case.unwritten(rows)], lambda mass: (x, width, mass)
    ):
        terms = wide(case.seen(x))
        case.assert_near(mass, terms.sum(1), 16 * case.eps * np.abs(terms).sum(1))


@fuzz
def test_per_mass(case: Case) -> None:
    case.may_be_of_bfloat16()
    rows, width, with_dot = case.size(20), case.size(140), case.chance(50)
    x, y = (case.stored(case.numbers(rows, width)) for _ in range(2))
    mass = case.positive(rows)
    out = [case.stored(case.unwritten(rows, width)), case.unwritten(rows)][: 1 + with_dot]
    for scaled, *dot in case.run(
        "per_mass",
        rows,
        out,
        lambda scaled, dot=None: (x, y if with_dot else None, mass, width, EPS, scaled, dot),
    ):
        want = wide(case.seen(x)) / (wide(mass) + case.rounded(EPS))[:, None]
        case.assert_near(case.seen(scaled), want, (4 * case.eps + case.lost) * np.abs(want))
        for sums in dot:
            terms = want * case.seen(y)
            case.assert_near(sums, terms.sum(1), 32 * case.eps * np.abs(terms).sum(1))


def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    """Every number there is, by factors that leave ties, subnormal numbers and infinities."""
    x = np.arange(2**16, dtype=np.uint16)
    numbers = torch.from_numpy(x).view(torch.bfloat16).float()
    # 1 / (mass + 1) is 1, 1.5, 1/2 to 1/16, and some that leave all bits.
    for mass in (0, -1 / 3, 1, 3, 7, 15, 0.1, -0.99):
        sums = torch.tensor(mass) + 1
        want = (numbers * (1 / sums)).bfloat16().float().numpy()
        for isa in on_every_isa((*ISAS, "avx512_bf16")):
            out = np.zeros_like(x)
            struct = (x, None, np.float32([mass]), len(x), 1.0, out, None)
            module().bfloat16.per_mass(struct, 0, 1)
            assert is_alike(of_half_bits(out, "bfloat16"), want), (isa, mass)


@fuzz
def test_gru_gates(case: Case) -> None:
    states, width = case.size(9), case.size(140)
    rows = states * case.between(1, 2)
    with_shift, with_norm, of_normed = case.chance(50), case.chance(50), case.chance(50)
    x = case.numbers(rows, 3, width, deviation=2)
    h_gates = case.rows(1, states, 3 * width)
    h, shift, mass = case.numbers(states, width), case.numbers(3, width), case.positive(rows)
    statistics, sums, bias = case.numbers(states, 3), case.numbers(3, width), case.numbers(3, width)
    given = (
        *(x, h_gates.field[0], h, states, h_gates.field[2]),
        *((shift, mass) if with_shift else (None, None)),
        *((statistics, sums, bias) if of_normed else (None, None, None)),
        *(width, EPS, NORM_EPS),
    )
    out = [case.unwritten(rows, width), case.unwritten(rows, width)][: 1 + with_norm]
    own = np.arange(rows) % states
    for state, *normed in case.run(
        "gru_gates", rows, out, lambda state, normed=None: (*given, state, normed)
    ):
        share = wide(mass) / (wide(mass) + case.rounded(EPS)) if with_shift else np.zeros(rows)
        inputs, old = wide(x) + share[:, None, None] * wide(shift), wide(h)[own]
        hidden = wide(h_gates.x[0]).reshape(states, 3, width)
        size = np.abs(hidden)
        if of_normed:
            mean, deviation = (wide(statistics)[:, i, None, None] for i in range(2))
            terms = (deviation * hidden, mean * wide(sums), np.broadcast_to(bias, hidden.shape))
            hidden, size = np.sum(terms, 0), np.abs(terms).sum(0)
        hidden, size = hidden[own], size[own]
        allowed = 1 + (np.abs(inputs) + size + np.abs(shift)).sum(1)
        reset, update = (sigmoid(inputs[:, i] + hidden[:, i]) for i in range(2))
        fresh = np.tanh(inputs[:, 2] + reset * hidden[:, 2])
        want = fresh + update * (old - fresh)
        case.assert_near(state, want, 8 * case.eps * allowed * (1 + np.abs(old)))
        for rows_of in normed:
            assert_normed(case, state, rows_of)
