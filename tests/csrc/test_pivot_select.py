"""pivot_select on the CPU, of whole numbers, whose sums do not round."""

from __future__ import annotations

import pytest

from ocvtp_kernels import ops
from tests.csrc.shapes import Array, Case, Divide, assert_ids, fuzz, tensor

pytestmark = pytest.mark.usefixtures("kernels")


@fuzz
def test_pivot_select(case: Case) -> None:
    batch, tokens, width = case.between(1, 3), case.size(70), case.size(140)
    budget = case.between(1, tokens)
    points = case.rows(batch, tokens, width, whole=True)

    def body(divide: Divide) -> list[Array]:
        running, order = case.unwritten(batch, tokens), case.ids(batch, budget)

        def run(kernel: str, step: int, divide_step: Divide) -> None:
            struct = (points.field, tokens, width, budget, step, running, order)
            divide_step(lambda begin, end: getattr(case.kernels, kernel)(struct, begin, end))

        run("pivot_norms", 0, divide)
        for step in range(budget):
            run("pivot_pick", step, lambda part: part(0, batch))
            run("pivot_distances", step, divide)
        return [order]

    for (order,) in case.results(batch * tokens, body):
        if not case.spoilt:
            assert_ids(order, ops.pivot_select.reference(tensor(points.x).double(), budget))
