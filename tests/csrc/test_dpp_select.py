"""dpp_select on the CPU."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from ocvtp_kernels.ops.dpp_select import TINY
from tests.csrc.shapes import Array, Case, Divide, assert_ids, ceil_div, fuzz, token_blocks

pytestmark = pytest.mark.usefixtures("kernels")


def dpp_order(similarity: Array, quality: Array, budget: int) -> list[int]:
    """An image's picks, as the reference has them, whose square pick_root rounds otherwise."""
    variance = quality * quality * similarity.diagonal()
    min_variance = variance.dtype.type(TINY) * max(variance.max(), 0)
    components = np.zeros((0, len(variance)), variance.dtype)
    order: list[int] = []
    for _ in range(budget):
        free = variance.copy()
        free[order] = -np.inf
        pick = int(free.argmax())
        terms = [quality[pick] * similarity[pick] * quality, *(components[:, [pick]] * components)]
        rest = np.subtract.reduce(terms)
        explained = rest / np.sqrt(variance[pick]) if variance[pick] > min_variance else 0 * rest
        components = np.vstack([components, explained])
        variance = variance - explained * explained
        order.append(pick)
    return order


@fuzz
def test_dpp_select(case: Case) -> None:
    """Each operation rounds on its own, so that the picks are exactly those of the rule."""
    batch, tokens = case.between(1, 2), case.size(70)
    budget, padded = case.between(1, tokens), ceil_div(tokens, 16) * 16
    matrix = case.rows(batch, tokens, tokens)
    if not case.spoilt:
        # Similarities, of few directions or of many.
        points = case.numbers(batch, tokens, case.size(tokens))
        matrix.x[:] = points @ points.mT
    quality = case.numbers(batch, tokens, deviation=0.2, mean=1)

    def body(divide: Divide) -> list[Array]:
        variance, pick_components = case.unwritten(batch, tokens), case.unwritten(batch, budget)
        components = case.unwritten(batch, budget, padded)
        min_variance, pick_root = case.unwritten(batch), case.unwritten(batch)
        order = case.ids(batch, budget)
        for step in range(budget):
            sizes = (tokens, budget, step)
            scratch = (variance, components, pick_components, min_variance, pick_root)
            struct = (matrix.field, quality, *sizes, *scratch, order)
            case.kernels.dpp_pick(struct, 0, batch)
            divide(partial(case.kernels.dpp_explain, struct))
        return [order]

    for (order,) in case.results(batch * token_blocks(tokens), body):
        assert (np.diff(np.sort(order)) > 0).all() and (order >= 0).all() and (order < tokens).all()
        if not case.spoilt:
            want = [dpp_order(*image, budget) for image in zip(matrix.x, quality, strict=True)]
            assert_ids(order, torch.tensor(want))
