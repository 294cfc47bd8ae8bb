"""facility_select on the CPU, of whole numbers, whose sums do not round."""

from __future__ import annotations

import pytest

from ocvtp_kernels import ops
from tests.csrc.shapes import Array, Case, Divide, assert_ids, fuzz, tensor

pytestmark = pytest.mark.usefixtures("kernels")


@fuzz
def test_facility_select(case: Case) -> None:
    batch, tokens = case.between(1, 3), case.size(100)
    budget = case.between(1, tokens)
    matrix = case.rows(batch, tokens, tokens, whole=True)
    mean = 3 * case.between(-1, 1)
    saliency = case.numbers(batch, tokens, deviation=2, mean=mean, whole=True)

    def body(divide: Divide) -> list[Array]:
        bound, covered = case.unwritten(batch, tokens), case.unwritten(batch, tokens)
        bound_step, guessed = case.ids(batch, tokens), case.ids(batch, tokens)
        order = case.ids(batch, budget)
        scratch = (bound, covered, bound_step, guessed)
        struct = (matrix.field, saliency, tokens, budget, *scratch, order)
        divide(lambda begin, end: case.kernels.facility_gains(struct, begin, end))
        for image in reversed(range(batch)):
            case.kernels.facility_select(struct, image, image + 1)
        return [order]

    for (order,) in case.results(batch * tokens, body):
        if not case.spoilt:
            given = tensor(matrix.x).double(), tensor(saliency).double()
            assert_ids(order, ops.facility_select.reference(*given, budget))
