"""channel_variance on the CPU."""

from __future__ import annotations

import pytest

from tests.csrc.shapes import CHANNEL_BLOCK, Case, ceil_div, fuzz, wide

pytestmark = pytest.mark.usefixtures("kernels")


@fuzz
def test_channel_variance(case: Case) -> None:
    batch, tokens, width = case.between(1, 3), case.between(2, 70), case.between(1, 600)
    x = case.rows(batch, tokens, width, whole=True)
    for (variance,) in case.run(
        "channel_variance",
        batch * ceil_div(width, CHANNEL_BLOCK),
        [case.unwritten(batch, width)],
        lambda variance: (x.field, tokens, width, variance),
    ):
        # The mean and the last division alone round.
        want = wide(x.x).var(1, ddof=1)
        case.assert_near(variance, want, tokens * case.eps * (want + 1))
