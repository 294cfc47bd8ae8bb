"""centrifugal_select on the CPU: each operation rounds as the reference does, so ids are exact."""

from __future__ import annotations

import numpy as np
import pytest

from ocvtp_kernels import ops
from tests.csrc.shapes import Case, assert_ids, fuzz, tensor

pytestmark = pytest.mark.usefixtures("kernels")


@fuzz
def test_centrifugal_select(case: Case) -> None:
    batch, height, width = case.between(1, 2), case.between(1, 9), case.between(1, 9)
    tokens = height * width
    budget, num_pivots = case.between(1, tokens), case.between(1, tokens)
    matrix = case.rows(batch, tokens, tokens, whole=case.chance(30))
    # The cosines of a token that is NaN are.
    if case.chance(40):
        for image, ids in enumerate(case.some_ids(batch, tokens, case.between(1, min(tokens, 5)))):
            matrix.x[image, ids] = matrix.x[image, :, ids] = np.nan
    pivots = case.some_ids(batch, tokens, num_pivots)
    spread, step = 0.0 if case.chance(20) else 0.5, 0.0 if case.chance(20) else 0.2
    threshold, pad = 2 * case.random.standard_normal(), case.chance(50)
    chunk = case.between(1, tokens if case.chance(50) else min(tokens, 9))
    closest_pick, merit = case.unwritten(batch, tokens), case.unwritten(batch, tokens)
    square_distance, ranking, accepted = (case.ids(batch, tokens) for _ in range(3))
    selected = case.exact(np.ones((batch, tokens)), np.bool_)
    outputs = [case.ids(batch, budget), case.ids(batch), case.ids(batch, tokens)]
    given = (matrix.field, pivots, num_pivots, height, width, budget, spread, threshold, step)
    scratch = (chunk, pad, closest_pick, merit, square_distance, ranking, accepted, selected)
    want = ops.centrifugal_select.reference(
        tensor(matrix.x), tensor(pivots), height, width, budget, spread, threshold, step, chunk, pad
    )
    for got in case.run(
        "centrifugal_select",
        batch,
        [*outputs, case.unwritten(batch, tokens)],
        lambda *outputs: (*given, *scratch, *outputs),
    ):
        for a, b in zip(got, want, strict=True):
            assert_ids(a, b)
