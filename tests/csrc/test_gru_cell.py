"""The gates of the GRU on the CPU, against their formula."""

from __future__ import annotations

import numpy as np
import pytest

from tests.csrc.shapes import EPS, NORM_EPS, Case, assert_normed, fuzz, wide
from tests.csrc.special import sigmoid

pytestmark = pytest.mark.usefixtures("kernels")


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
        factor = wide(mass) / (wide(mass) + case.rounded(EPS)) if with_shift else np.zeros(rows)
        inputs, old = wide(x) + factor[:, None, None] * wide(shift), wide(h)[own]
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
