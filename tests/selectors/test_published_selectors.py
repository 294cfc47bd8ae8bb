"""VLM-Pruner and DivPrune beside the loops of their published code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.selectors import published
from tests.selectors.cases import WAYS, Images, on, tied

IMAGES = 200
# The default, then narrower and harsher ones.
EXPANSIONS: tuple[dict[str, Any], ...] = (
    {},
    {"spread": 0.0, "chunk": 3},
    {"threshold": 0.5, "chunk": 1},
    {"threshold": 0.3, "step": 0.02, "chunk": 5},
)


def vlm_pruner(
    tokens: Tensor, keys: Tensor, images: Images, pivots: int, channels: int, pad: bool
) -> tuple[list[int], int, Tensor]:
    """The published loops, then padding in the order that a further pass would rank: ids in the
    order picked, how many before padding, and the merged rows in that order."""
    similarity = published.screened_similarity(tokens, channels)
    expansion = published.Expansion(similarity, images.grid, **expansion_options(images))
    budget = images.budget
    picked = expansion.run(published.choose_pivots(keys, min(pivots, budget)), budget)
    found = len(picked)
    if pad and found < budget:
        picked = picked + expansion.ranked(picked)[: budget - found]
    return picked, found, published.recover(tokens, similarity, picked, own_share=0.3)


def expansion_options(images: Images) -> dict[str, Any]:
    return EXPANSIONS[images.seed % len(EXPANSIONS)]


def compare_vlm_pruner(images: Images) -> bool:
    """Checks all of a batch; whether a published budget falls short."""
    seed = images.seed
    pivots, channels = 1 + seed % 5, (7, 20, 256)[seed % 3]
    for pad in (True, False):
        wanted = [
            vlm_pruner(tokens, keys, images, pivots, channels, pad)
            for tokens, keys in zip(images.tokens, images.inputs["keys"], strict=True)
        ]
        for way in WAYS:
            with on(way):
                selected = images.select(
                    "vlm-pruner",
                    pivots=pivots,
                    channels=channels,
                    as_published=not pad,
                    **expansion_options(images),
                )
            assert selected.order is not None and selected.tokens is not None
            for index, (picked, found, merged) in enumerate(wanted):
                missing = [-1] * (images.budget - len(picked))
                assert selected.order[index].tolist() == picked + missing
                assert selected.ids[index].tolist() == sorted(picked) + missing
                assert selected.found is not None and selected.found[index] == found
                rows = merged[sorted(range(len(picked)), key=picked.__getitem__)]
                got = selected.tokens[index]
                np.testing.assert_allclose(got[: len(rows)], rows, rtol=1e-9, atol=1e-9)
                assert not got[len(rows) :].any()
    return any(found < images.budget for _, found, _ in wanted)


@pytest.mark.slow
def test_vlm_pruner() -> None:
    short = sum(compare_vlm_pruner(Images(seed)) for seed in range(IMAGES))
    # Budgets that the published code misses are among them, and such that it meets.
    assert IMAGES // 10 < short < IMAGES * 9 // 10


def test_ties_of_vlm_pruner_go_to_the_lowest_id() -> None:
    for seed in range(60):
        compare_vlm_pruner(tied(seed))


def test_the_whole_of_vlm_pruner_on_one_image() -> None:
    images = Images(4)
    ids, merged = published.vlm_pruner(
        images.tokens[0], images.inputs["keys"][0], images.grid, images.budget
    )
    selected = images.select("vlm-pruner", as_published=True)
    assert selected.tokens is not None
    assert selected.ids[0].tolist() == ids + [-1] * (images.budget - len(ids))
    torch.testing.assert_close(selected.tokens[0, : len(ids)], merged)


def test_divprune() -> None:
    for seed in range(IMAGES):
        images = Images(seed)
        wanted = [published.divprune(tokens, images.budget) for tokens in images.tokens]
        for way in WAYS:
            for as_published in (False, True):
                with on(way):
                    selected = images.select("divprune", as_published=as_published)
                assert selected.order is not None
                assert selected.order.tolist() == wanted
                assert selected.ids.tolist() == [sorted(order) for order in wanted]


def test_divprune_as_published_takes_duplicates_twice() -> None:
    # Unit vectors: their products are exact.
    tokens = torch.eye(6).repeat(2, 1)[None]
    images = Images(0, torch.float32)
    images.tokens, images.budget, images.inputs = tokens, 9, {}
    wanted = published.divprune(tokens[0], 9)
    assert len(set(wanted)) == 6
    for way in WAYS:
        with on(way):
            twice = images.select("divprune", as_published=True)
            once = images.select("divprune")
        assert twice.order is not None and twice.order.tolist() == [wanted]
        assert once.ids[0].unique().numel() == 9
