"""scatter_merge on the CPU, of whole numbers, whose sums do not round."""

from __future__ import annotations

import numpy as np
import pytest

from ocvtp_kernels import ops
from tests.csrc.shapes import Array, Case, Divide, assert_ids, fuzz, tensor

pytestmark = pytest.mark.usefixtures("kernels")


@fuzz
def test_scatter_merge(case: Case) -> None:
    batch, tokens, width = case.between(1, 3), case.size(70), case.size(140)
    num_owners = case.size(40)
    x = case.rows(batch, tokens, width, whole=True)
    weight = case.numbers(batch, tokens, deviation=3, whole=True)
    # Out of range is no owner.
    assignment = case.exact(case.random.integers(-2, num_owners + 1, (batch, tokens)), np.int64)

    def body(divide: Divide) -> list[Array]:
        starts, members = case.ids(batch, num_owners + 1), case.ids(batch, tokens)
        sums, mass = case.unwritten(batch, num_owners, width), case.unwritten(batch, num_owners)
        sizes = (tokens, width, num_owners)
        struct = (x.field, weight, assignment, *sizes, starts, members, sums, mass)
        for image in reversed(range(batch)):
            case.kernels.merge_lists(struct, image, image + 1)
        divide(lambda begin, end: case.kernels.merge_sums(struct, begin, end))
        return [sums, mass]

    for got in case.results(batch * num_owners, body):
        if not case.spoilt:
            given = tensor(x.x).double(), tensor(assignment), tensor(weight).double()
            for a, b in zip(got, ops.scatter_merge.reference(*given, num_owners), strict=True):
                assert_ids(a, b)
