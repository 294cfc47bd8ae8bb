"""The greedy CPU kernels.

Comparisons alone decide most of them, so their references in the kernel's own dtype are exact, for
NaN too; what is summed is whole numbers, whose sums do not round.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops
from ocvtp_kernels.ops import greedy as reference
from tests.csrc.shapes import (
    CHANNEL_BLOCK,
    Array,
    Case,
    Divide,
    ceil_div,
    fuzz,
    token_blocks,
    wide,
)

pytestmark = pytest.mark.usefixtures("kernels")


def tensor(x: Array) -> Tensor:
    return torch.from_numpy(np.array(x))


def assert_ids(got: Array, want: Tensor) -> None:
    assert (got == want.numpy()).all(), f"got {got}, expected {want}"


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


@fuzz
def test_pivot_select(case: Case) -> None:
    batch, tokens, width = case.between(1, 3), case.size(70), case.size(140)
    budget = case.between(1, tokens)
    points = case.rows(batch, tokens, width, whole=True)

    def body(divide: Divide) -> list[Array]:
        running, order = case.unwritten(batch, tokens), case.ids(batch, budget)

        def run(kernel: str, step: int, share: Divide) -> None:
            struct = (points.field, tokens, width, budget, step, running, order)
            share(lambda begin, end: getattr(case.kernels, kernel)(struct, begin, end))

        run("pivot_norms", 0, divide)
        for step in range(budget):
            run("pivot_pick", step, lambda part: part(0, batch))
            run("pivot_distances", step, divide)
        return [order]

    for (order,) in case.results(batch * tokens, body):
        if not case.spoilt:
            assert_ids(order, ops.pivot_select.reference(tensor(points.x).double(), budget))


def dpp_order(similarity: Array, quality: Array, budget: int) -> list[int]:
    """An image's picks, as the reference has them, whose square root rounds otherwise."""
    left = quality * quality * similarity.diagonal()
    least = left.dtype.type(reference.TINY) * max(left.max(), 0)
    components = np.zeros((0, len(left)), left.dtype)
    order: list[int] = []
    for _ in range(budget):
        free = left.copy()
        free[order] = -np.inf
        pick = int(free.argmax())
        terms = [quality[pick] * similarity[pick] * quality, *(components[:, [pick]] * components)]
        rest = np.subtract.reduce(terms)
        explained = rest / np.sqrt(left[pick]) if left[pick] > least else 0 * rest
        components = np.vstack([components, explained])
        left = left - explained * explained
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
        left, own = case.unwritten(batch, tokens), case.unwritten(batch, budget)
        components = case.unwritten(batch, budget, padded)
        least, root = case.unwritten(batch), case.unwritten(batch)
        order = case.ids(batch, budget)
        for step in range(budget):
            sizes = (tokens, budget, step)
            struct = (matrix.field, quality, *sizes, left, components, own, least, root, order)
            case.kernels.dpp_pick(struct, 0, batch)
            divide(partial(case.kernels.dpp_explain, struct))
        return [order]

    for (order,) in case.results(batch * token_blocks(tokens), body):
        assert (np.diff(np.sort(order)) > 0).all() and (order >= 0).all() and (order < tokens).all()
        if not case.spoilt:
            want = [dpp_order(*image, budget) for image in zip(matrix.x, quality, strict=True)]
            assert_ids(order, torch.tensor(want))


@fuzz
def test_facility_select(case: Case) -> None:
    batch, tokens = case.between(1, 3), case.size(100)
    budget = case.between(1, tokens)
    matrix = case.rows(batch, tokens, tokens, whole=True)
    mean = 3 * case.between(-1, 1)
    saliency = case.numbers(batch, tokens, deviation=2, mean=mean, whole=True)

    def body(divide: Divide) -> list[Array]:
        bound, covered = case.unwritten(batch, tokens), case.unwritten(batch, tokens)
        known, revived = case.ids(batch, tokens), case.ids(batch, tokens)
        order = case.ids(batch, budget)
        scratch = (bound, covered, known, revived)
        struct = (matrix.field, saliency, tokens, budget, *scratch, order)
        divide(lambda begin, end: case.kernels.facility_gains(struct, begin, end))
        for image in reversed(range(batch)):
            case.kernels.facility_select(struct, image, image + 1)
        return [order]

    for (order,) in case.results(batch * tokens, body):
        if not case.spoilt:
            given = tensor(matrix.x).double(), tensor(saliency).double()
            assert_ids(order, ops.facility_select.reference(*given, budget))


@fuzz
def test_match_select(case: Case) -> None:
    batch, tokens = case.between(1, 3), case.size(100)
    places = case.between(1, tokens)
    budget, drop = case.between(1, places), case.between(1, 12)
    matrix = case.rows(batch, tokens, tokens, whole=case.chance(50))
    ranked = case.some_ids(batch, tokens, places)
    floats = [case.unwritten(batch, tokens), case.unwritten(batch, places)]
    ids = [case.ids(batch, places) for _ in range(3)]
    sizes = (tokens, places, budget, drop)
    want = ops.match_select.reference(tensor(matrix.x), tensor(ranked), budget, drop)
    for (order,) in case.run(
        "match_select",
        batch,
        [case.ids(batch, budget)],
        lambda order: (matrix.field, ranked, *sizes, *floats, *ids, order),
    ):
        assert_ids(order, want)


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
    place, merit = case.unwritten(batch, tokens), case.unwritten(batch, tokens)
    nearest, ranking, accepted = (case.ids(batch, tokens) for _ in range(3))
    taken = case.exact(np.ones((batch, tokens)), np.bool_)
    outputs = [case.ids(batch, budget), case.ids(batch), case.ids(batch, tokens)]
    given = (matrix.field, pivots, num_pivots, height, width, budget, spread, threshold, step)
    scratch = (chunk, pad, place, merit, nearest, ranking, accepted, taken)
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


@fuzz
def test_scatter_merge(case: Case) -> None:
    batch, tokens, width = case.between(1, 3), case.size(70), case.size(140)
    owners = case.size(40)
    x = case.rows(batch, tokens, width, whole=True)
    weight = case.numbers(batch, tokens, deviation=3, whole=True)
    # Past both ends there is no owner.
    owner = case.exact(case.random.integers(-2, owners + 1, (batch, tokens)), np.int64)

    def body(divide: Divide) -> list[Array]:
        starts, members = case.ids(batch, owners + 1), case.ids(batch, tokens)
        sums, mass = case.unwritten(batch, owners, width), case.unwritten(batch, owners)
        sizes = (tokens, width, owners)
        struct = (x.field, weight, owner, *sizes, starts, members, sums, mass)
        for image in reversed(range(batch)):
            case.kernels.merge_lists(struct, image, image + 1)
        divide(lambda begin, end: case.kernels.merge_sums(struct, begin, end))
        return [sums, mass]

    for got in case.results(batch * owners, body):
        if not case.spoilt:
            given = tensor(x.x).double(), tensor(owner), tensor(weight).double()
            for a, b in zip(got, ops.scatter_merge.reference(*given, owners), strict=True):
                assert_ids(a, b)


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
