"""farthest_select on the CPU: each operation rounds as the reference does, so ids are exact."""

from __future__ import annotations

import numpy as np
import pytest

from ocvtp_kernels import ops
from tests.csrc.shapes import Array, Case, Divide, assert_ids, fuzz, tensor, token_blocks

pytestmark = pytest.mark.usefixtures("kernels")


@fuzz
def test_farthest_select(case: Case) -> None:
    batch, tokens = case.between(1, 3), case.size(140)
    budget, distinct = case.between(1, tokens), case.chance(60)
    matrix = case.rows(batch, tokens, tokens, whole=case.chance(50))
    first = case.some_ids(batch, tokens, 1)[:, 0] if case.chance(40) else None
    first = None if first is None else case.exact(first, np.int64)
    greedy, blocks = case.kernels, batch * token_blocks(tokens)

    def body(divide_blocks: Divide, divide_images: Divide) -> list[Array]:
        running, order = case.unwritten(batch, tokens), case.ids(batch, budget)
        struct = (matrix.field, first, tokens, budget, distinct, running, order)
        divide_blocks(lambda begin, end: greedy.farthest_nearest(struct, begin, end))
        nearest = running.copy()
        divide_images(lambda begin, end: greedy.farthest_select(struct, begin, end))
        return [order, nearest]

    by_blocks = case.results(blocks, lambda divide: body(divide, lambda part: part(0, batch)))
    by_images = case.results(batch, lambda divide: body(lambda part: part(0, blocks), divide))
    want = ops.farthest_select.reference(
        tensor(matrix.x), None if first is None else tensor(first), budget, distinct
    )
    for (order, _), (again, _) in zip(by_blocks, by_images, strict=True):
        assert_ids(order, want)
        assert_ids(again, want)
