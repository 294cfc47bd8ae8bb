"""The assignment of tokens to slots on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from tests.csrc.shapes import Case, any_shape, fuzz, is_alike, token_blocks

pytestmark = pytest.mark.usefixtures("kernels")


@fuzz
def test_slot_owners(case: Case) -> None:
    batch, slots, tokens = shape = any_shape(case)
    # Whole numbers: many ties, which go to the first.
    attention = case.numbers(*shape, whole=case.chance(60))
    for share, owner in case.run(
        "slot_owners",
        batch * token_blocks(tokens),
        [case.unwritten(batch, tokens), case.ids(batch, tokens)],
        lambda share, owner: (attention, slots, tokens, share, owner),
    ):
        # NumPy's first maximum is a NaN where there is one, as PyTorch's.
        want = attention.argmax(1)
        assert (owner == want).all()
        assert is_alike(share, np.take_along_axis(attention, want[:, None], 1)[:, 0])
