"""HoloV: how the budget is shared out among chunks, and where there is no share."""

from __future__ import annotations

import pytest
import torch

from ocvtp_kernels.selectors.holov import cut, share_out
from ocvtp_kernels.selectors.registry import select
from tests.cases import assert_kept
from tests.selectors.cases import Images


@pytest.mark.parametrize(
    ("num_tokens", "count", "sizes"),
    [(576, 16, [36] * 16), (7, 3, [3, 2, 2]), (8, 3, [3, 3, 2]), (3, 16, [1, 1, 1]), (1, 1, [1])],
)
def test_chunks_follow_on_one_another(num_tokens: int, count: int, sizes: list[int]) -> None:
    chunks = cut(num_tokens, count, torch.device("cpu"))
    assert chunks.sizes.tolist() == sizes == chunks.valid.sum(dim=1).tolist()
    assert chunks.ids[chunks.valid].tolist() == list(range(num_tokens))


SHARES: list[tuple[list[float], list[int], int, list[int], list[int]]] = [
    # Weights, sizes, budget; the quota, and as published.
    ([0.5, 0.25, 0.25], [9, 9, 9], 8, [4, 2, 2], [4, 2, 2]),
    # Floors of 1.4, 2.8 and 2.8: the two left go to the largest, ties to the first.
    ([0.2, 0.4, 0.4], [9, 9, 9], 7, [1, 3, 3], [1, 3, 3]),
    ([0.5, 0.25, 0.25], [9, 9, 9], 5, [3, 1, 1], [3, 1, 1]),
    # What the first has no room for fills the next by weight, and then the last.
    ([0.8, 0.05, 0.15], [3, 4, 2], 8, [3, 3, 2], [3, 0, 1]),
    ([0.8, 0.1, 0.1], [3, 4, 4], 10, [3, 4, 3], [3, 1, 1]),
    # Nothing has a weight.
    ([0.0, 0.0, 0.0], [4, 4, 4], 7, [4, 2, 1], [1, 1, 1]),
]


@pytest.mark.parametrize(("weight", "sizes", "budget", "exact", "published"), SHARES)
def test_shares_by_hand(
    weight: list[float], sizes: list[int], budget: int, exact: list[int], published: list[int]
) -> None:
    weights = torch.tensor([weight], dtype=torch.float64)
    for is_exact, wanted in ((True, exact), (False, published)):
        assert share_out(weights, torch.tensor(sizes), budget, is_exact).tolist() == [wanted]


def test_whole_shares_survive_rounding() -> None:
    weights = torch.full((1, 10), 0.1, dtype=torch.float64)
    for off in (-1e-12, 1e-12):
        weights[0, 3] += off
        assert share_out(weights, torch.full((10,), 9), 30, True).tolist() == [[3] * 10]


@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan, torch.inf])
def test_attention_without_a_share_still_fills_the_budget(value: float) -> None:
    images = Images(3, torch.float32)
    images.inputs["cls_attention"] = torch.full_like(images.inputs["cls_attention"], value)
    found = images.select("holov", num_patches=5)
    assert_kept(found.ids, images.budget, images.tokens.shape[1])


def test_a_chunk_keeps_attention_before_none() -> None:
    tokens = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))
    attention = torch.tensor([[torch.nan, 0.1, -torch.inf, 0.3, 0.2, 0.3]])
    kept = [
        select(tokens, budget, "holov", num_patches=1, cls_attention=attention).ids.tolist()
        for budget in range(1, 7)
    ]
    assert kept == [
        *([[3]], [[3, 5]], [[3, 4, 5]], [[1, 3, 4, 5]]),
        *([[0, 1, 3, 4, 5]], [[0, 1, 2, 3, 4, 5]]),
    ]


def test_as_published_what_exceeds_a_chunk_is_lost() -> None:
    tokens = torch.randn(1, 32, 4, generator=torch.Generator().manual_seed(0))
    attention = torch.full((1, 32), 1e-3)
    attention[:, :2] = 1.0
    given = {"cls_attention": attention, "num_patches": 16}
    found = select(tokens, 12, "holov", as_published=True, **given)  # type: ignore[arg-type]
    assert found.found is not None and found.tokens is not None
    (count,) = found.found.tolist()
    assert 2 <= count < 12
    assert found.ids[0, :2].tolist() == [0, 1]
    assert found.ids[0, count:].tolist() == [-1] * (12 - count)
    assert torch.equal(found.tokens[0, :count], tokens[0, found.ids[0, :count]])
    assert not found.tokens[0, count:].any()
    whole = select(tokens, 12, "holov", **given)  # type: ignore[arg-type]
    assert whole.found is None
    assert_kept(whole.ids, 12, 32)
    assert set(found.ids[0, :count].tolist()) <= set(whole.ids[0].tolist())
