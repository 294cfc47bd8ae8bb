"""bipartite_merge on the CPU, kernel by kernel: each on what the one before may give it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tests.csrc.shapes import Array, Case, Divide, ceil_div, fuzz, wide

pytestmark = pytest.mark.usefixtures("kernels")

UNIT_BLOCK, SCORE_BLOCK = 16, 8  # as bipartite_merge.h has them
NOTHING = (None, 0, 0)  # rows that a kernel does not read


class Sides:
    """Random sizes, and where A and B stand."""

    def __init__(self, case: Case) -> None:
        self.batch, self.tokens = case.between(1, 3), case.size(80) + 1
        prefix = case.between(0, min(5, self.tokens - 2))
        self.first_a, self.first_b = prefix + prefix % 2, prefix + 1 - prefix % 2
        self.a = np.arange(self.first_a, self.tokens, 2)
        self.b = np.arange(self.first_b, self.tokens, 2)
        self.merged = case.between(0, len(self.a) if len(self.b) else 0)

    def struct(self, **given: Any) -> tuple[Any, ...]:
        """The arguments' fields; pointers that are not given are null."""
        fields = ("units", "score", "target", "sorted", "left", "next")
        fields += ("merged", "merged_sizes", "assignment")
        numbers = (self.tokens, given.get("width", 0), given.get("depth", 0), self.merged)
        return (
            *(given.get("rows", NOTHING), given.get("keys", NOTHING), given.get("sizes")),
            *(*numbers, self.first_a, self.first_b, *map(given.get, fields)),
        )

    def groups(self, targets: Array, sources: list[Array]) -> tuple[list[Array], Array, Array]:
        """By image the tokens left, then what merges next and each token's row, one by one."""
        following = np.full((self.batch, self.tokens), -1, np.int64)
        rows = np.empty_like(following)
        lefts = []
        for image, chosen in enumerate(sources):
            into = {self.a[i]: self.b[targets[image, i]] for i in sorted(chosen)}
            left = [n for n in range(self.tokens) if n not in into]
            lefts.append(np.array(left, np.int64))
            rows[image] = [left.index(into.get(n, n)) for n in range(self.tokens)]
            for b in self.b:
                chain = [b, *(a for a in into if into[a] == b)]
                for one, other in pairwise(chain):
                    following[image, one] = other
        return lefts, following, rows


@fuzz
def test_scores(case: Case) -> None:
    sides, depth = Sides(case), case.size(80)
    batch, num_a, num_b = sides.batch, len(sides.a), len(sides.b)
    keys = case.rows(batch, sides.tokens, depth)
    if not num_a or not num_b:
        return
    blocks = ceil_div(num_b, UNIT_BLOCK)

    def body(divide: Divide) -> list[Array]:
        units = case.unwritten(batch, blocks, depth, UNIT_BLOCK)
        score, target = case.unwritten(batch, num_a), case.ids(batch, num_a)
        struct = sides.struct(keys=keys.field, depth=depth, units=units, score=score, target=target)
        for part in reversed(range(batch * blocks)):
            case.kernels.bipartite_units(struct, part, part + 1)
        divide(lambda begin, end: case.kernels.bipartite_scores(struct, begin, end))
        return [score, target]

    x = wide(keys.x)
    norm = np.maximum(np.sqrt(np.square(x).sum(-1, keepdims=True)), np.longdouble(1e-12))
    cosine = (x / norm)[:, sides.a] @ (x / norm)[:, sides.b].swapaxes(1, 2)
    for score, target in case.results(batch * ceil_div(num_a, SCORE_BLOCK), body):
        assert ((target >= 0) & (target < num_b)).all() and not np.isnan(score).any()
        found = np.take_along_axis(cosine, target[..., None], -1)[..., 0]
        case.assert_near(score, found, (depth + 8) * case.eps)
        case.assert_near(found, cosine.max(-1), (depth + 8) * case.eps)


@fuzz
def test_groups(case: Case) -> None:
    sides = Sides(case)
    batch, num_a = sides.batch, len(sides.a)
    # Few different scores, -inf too: most are ties.
    levels = np.array([-np.inf, -0.5, 0.0, -0.0, 0.5, 1.0])
    score = case.exact(case.random.choice(levels, (batch, num_a)))
    target = case.random.integers(0, max(1, len(sides.b)), (batch, num_a))
    target = case.exact(target, np.int64)
    chosen = [np.argsort(-row, kind="stable")[: sides.merged] for row in score]
    lefts, following, rows = sides.groups(target, chosen)
    outputs = [case.ids(batch, sides.tokens - sides.merged)]
    outputs += [case.ids(batch, sides.tokens) for _ in range(2)]
    for got in case.run(
        "bipartite_groups",
        batch,
        outputs,
        lambda left, next_, assignment: sides.struct(
            **{"score": score, "target": target, "sorted": case.ids(batch, num_a)},
            **{"left": left, "next": next_, "assignment": assignment},
        ),
    ):
        for one, other in zip(got, (np.stack(lefts), following, rows), strict=True):
            assert (one == other).all()


@fuzz
def test_rows(case: Case) -> None:
    sides, width = Sides(case), case.size(140)
    batch, num_a = sides.batch, len(sides.a)
    # Sums of whole numbers do not round.
    tokens = case.rows(batch, sides.tokens, width, whole=True)
    sizes = case.exact(case.random.integers(1, 5, (batch, sides.tokens)))
    target = case.random.integers(0, max(1, len(sides.b)), (batch, num_a))
    chosen = [case.random.permutation(num_a)[: sides.merged] for _ in range(batch)]
    lefts, following, rows = sides.groups(target, chosen)
    num_left = sides.tokens - sides.merged
    left, next_ = case.exact(np.stack(lefts), np.int64), case.exact(following, np.int64)
    is_in = rows[:, None] == np.arange(num_left)[:, None]
    sums = is_in.astype(case.dtype) * sizes[:, None] @ tokens.x
    totals = (is_in * sizes[:, None]).sum(-1)
    for merged, merged_sizes in case.run(
        "bipartite_rows",
        batch * num_left,
        [case.unwritten(batch, num_left, width), case.unwritten(batch, num_left)],
        lambda merged, merged_sizes: sides.struct(
            **{"rows": tokens.field, "sizes": sizes, "width": width, "left": left},
            **{"next": next_, "merged": merged, "merged_sizes": merged_sizes},
        ),
    ):
        assert (merged_sizes == totals).all()
        case.assert_near(merged, (sums / totals[..., None]).astype(case.dtype), 0)
        alone = np.take_along_axis(next_, left, 1) < 0
        same = np.take_along_axis(tokens.x, left[..., None], 1)[alone]
        assert np.array_equal(merged[alone], same, equal_nan=True)
