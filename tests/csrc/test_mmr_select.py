"""mmr_select on the CPU: each operation rounds as the reference does, so ids are exact."""

from __future__ import annotations

import pytest

from ocvtp_kernels import ops
from tests.csrc.shapes import Case, assert_ids, fuzz, tensor

pytestmark = pytest.mark.usefixtures("kernels")


@fuzz
def test_mmr_select(case: Case) -> None:
    batch, tokens = case.between(1, 3), case.size(140)
    budget = case.between(1, tokens)
    trade_off = case.between(0, 8) / 8 if case.chance(50) else float(case.random.random())
    whole = case.chance(50)
    relevance = case.numbers(batch, tokens, deviation=2, whole=whole)
    matrix = case.rows(batch, tokens, tokens, whole=whole)
    want = ops.mmr_select.reference(tensor(relevance), tensor(matrix.x), budget, trade_off)
    for (order,) in case.run(
        "mmr_select",
        batch,
        [case.ids(batch, budget)],
        lambda order: (
            *(relevance, matrix.field, tokens, budget, trade_off, 1 - trade_off),
            *(case.unwritten(batch, tokens), order),
        ),
    ):
        assert_ids(order, want)
