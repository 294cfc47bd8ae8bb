"""From picks to ids to rows on the CPU, exactly as the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import as_strided

from ocvtp_kernels import ops
from tests.csrc.shapes import Array, Case, Divide, Part, fuzz, module

pytestmark = pytest.mark.usefixtures("kernels")


@fuzz
def test_resolve_picks_and_gather_rows(case: Case) -> None:
    batch, slots, tokens = case.between(1, 3), case.size(40), case.size(140)
    top_k, budget = case.between(1, 3), case.between(1, tokens)
    case.dtype = np.dtype(np.float64)
    peak, importance = case.numbers(batch, slots), case.numbers(batch, tokens)
    # Halves and whole numbers alone: many ties.
    if case.chance(50):
        peak, importance = (case.exact(np.round(2 * x) / 2) for x in (peak, importance))
    scores = importance if case.chance(60) else None
    upper = tokens if case.chance(50) else case.between(1, tokens)
    picks = case.exact(case.random.integers(0, upper, (batch, slots, top_k)), np.int64)

    def in_pieces(kernel: str, struct: tuple[object, ...]) -> Part:
        return lambda begin, end: getattr(module(), kernel)(struct, begin, end)

    def resolve(divide: Divide) -> list[Array]:
        kept, spare = case.exact(np.zeros((batch, tokens)), np.bool_), case.unwritten(batch, tokens)
        ids, sizes = case.ids(batch, budget), (slots, top_k, tokens, budget)
        scratch = (kept, None if scores is None else spare, case.ids(*picks.shape))
        divide(in_pieces("resolve_picks", (picks, peak, scores, *sizes, *scratch, ids)))
        return [ids]

    width = case.size(40)
    stride = width + case.between(0, 3)
    final = case.random.integers(0, 100, ((batch * tokens - 1) * stride + width,))
    flat = case.exact(final, np.int8)
    rows = as_strided(flat, (batch, tokens, width), (tokens * stride, stride, 1))
    for (ids,) in case.results(batch, resolve):
        given = None if scores is None else torch.from_numpy(scores)
        picks_of = (torch.from_numpy(picks), torch.from_numpy(peak))
        want = ops.resolve_picks.reference(*picks_of, given, budget, tokens)
        assert (ids == want.numpy()).all()

        def gather(divide: Divide, ids: Array = ids) -> list[Array]:
            to = case.exact(np.full((batch, budget, width), -1), np.int8)
            struct = (flat, tokens * stride, stride, width, ids, budget, to)
            divide(in_pieces("gather_rows", struct))
            return [to]

        for (gathered,) in case.results(batch * budget, gather):
            assert (gathered == np.take_along_axis(rows, ids[..., None], 1)).all()
