"""match_select on the CPU: each operation rounds as the reference does, so ids are exact."""

from __future__ import annotations

import pytest

from ocvtp_kernels import ops
from tests.csrc.shapes import Case, assert_ids, fuzz, tensor

pytestmark = pytest.mark.usefixtures("kernels")


@fuzz
def test_match_select(case: Case) -> None:
    batch, tokens = case.between(1, 3), case.size(100)
    num_ranked = case.between(1, tokens)
    budget, drop = case.between(1, num_ranked), case.between(1, 12)
    matrix = case.rows(batch, tokens, tokens, whole=case.chance(50))
    ranked = case.some_ids(batch, tokens, num_ranked)
    floats = [case.unwritten(batch, tokens), case.unwritten(batch, num_ranked)]
    ids = [case.ids(batch, num_ranked) for _ in range(3)]
    sizes = (tokens, num_ranked, budget, drop)
    want = ops.match_select.reference(tensor(matrix.x), tensor(ranked), budget, drop)
    for (order,) in case.run(
        "match_select",
        batch,
        [case.ids(batch, budget)],
        lambda order: (matrix.field, ranked, *sizes, *floats, *ids, order),
    ):
        assert_ids(order, want)
