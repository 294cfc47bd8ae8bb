"""The assignment of tokens to slots on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from tests.csrc.shapes import Case, any_shape, fuzz, is_alike, token_blocks

pytestmark = pytest.mark.usefixtures("kernels")


@fuzz
def test_slot_assignment(case: Case) -> None:
    batch, slots, tokens = shape = any_shape(case)
    # Whole numbers: many ties, which go to the first.
    attention = case.numbers(*shape, whole=case.chance(60))
    for weight, assignment in case.run(
        "slot_assignment",
        batch * token_blocks(tokens),
        [case.unwritten(batch, tokens), case.ids(batch, tokens)],
        lambda weight, assignment: (attention, slots, tokens, weight, assignment),
    ):
        # NumPy's first maximum is a NaN where there is one, as PyTorch's.
        want = attention.argmax(1)
        assert (assignment == want).all()
        assert is_alike(weight, np.take_along_axis(attention, want[:, None], 1)[:, 0])
