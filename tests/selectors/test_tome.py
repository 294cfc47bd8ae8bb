"""ToMe on tokens, in rounds, beside a slow transcription."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ocvtp_kernels.selectors.registry import select
from tests.selectors.cases import HEADS, WAYS, Images, on, tied


def cosine(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def merged(
    tokens: np.ndarray[Any, Any], keys: np.ndarray[Any, Any], budget: int, heads: int
) -> tuple[list[int], np.ndarray[Any, Any], list[int]]:
    """Ids, tokens and groups of one image, group by group."""
    keys = keys.reshape(len(keys), heads, -1).mean(1)
    # Place, members, token, key.
    groups: list[Any] = [(i, [i], tokens[i], keys[i]) for i in range(len(tokens))]
    while len(groups) > budget:
        found = []
        for a in range(0, len(groups), 2):
            others = range(1, len(groups), 2)

            scores = {b: cosine(groups[a][3], groups[b][3]) for b in others}
            best = min(others, key=lambda b: (-scores[b], b))
            found.append((-scores[best], a, best))
        chosen = sorted(found)[: len(groups) - budget]
        for _, a, b in sorted(chosen, key=lambda each: each[1]):
            (_, m, *of_a), (place, n, *of_b) = groups[a], groups[b]
            total = len(m) + len(n)
            pairs = zip(of_a, of_b, strict=True)
            groups[b] = (place, n + m, *((len(m) * x + len(n) * y) / total for x, y in pairs))
        gone = {a for _, a, _ in chosen}
        groups = [group for at, group in enumerate(groups) if at not in gone]
    owner = {member: row for row, group in enumerate(groups) for member in group[1]}
    kept = np.stack([group[2] for group in groups])
    return [group[0] for group in groups], kept, [owner[i] for i in range(len(tokens))]


@pytest.mark.parametrize("dtype, count", [(torch.float64, 200), (torch.float32, 30)])
def test_rounds(dtype: torch.dtype, count: int) -> None:
    tight = 1e-9 if dtype == torch.float64 else 1e-4
    for seed in range(count):
        images = Images(seed, dtype)
        wanted = [
            merged(image["tokens"], image["keys"], images.budget, HEADS)
            for image in images.images()
        ]
        for way in WAYS:
            with on(way):
                selected = images.select("tome", heads=HEADS)
            assert selected.tokens is not None and selected.groups is not None
            for index, (ids, tokens, groups) in enumerate(wanted):
                assert selected.ids[index].tolist() == ids
                assert selected.groups[index].tolist() == groups
                got = selected.tokens[index].double().numpy()
                np.testing.assert_allclose(got, tokens, rtol=tight, atol=tight)


@pytest.mark.parametrize("way", WAYS)
def test_distinct_on_duplicates_and_alike_in_a_batch(way: str) -> None:
    with on(way):
        for seed in range(40):
            images = tied(seed)
            whole = images.select("tome")
            assert whole.tokens is not None and whole.groups is not None
            for index in range(len(images.tokens)):
                ids = whole.ids[index].tolist()
                assert ids == sorted(set(ids)) and len(ids) == images.budget
                assert set(whole.groups[index].tolist()) == set(range(images.budget))
                alone = select(
                    images.tokens[index, None],
                    images.budget,
                    "tome",
                    keys=images.inputs["keys"][index, None],
                )
                assert alone.tokens is not None and alone.groups is not None
                for got, one in zip(whole[:2], alone[:2], strict=True):
                    assert torch.equal(got[index], one[0])
                assert torch.equal(whole.groups[index], alone.groups[0])


def test_letterboxed_image() -> None:
    torch.manual_seed(0)
    tokens = torch.zeros(1, 96, 8)
    tokens[:, 32:64] = torch.randn(1, 32, 8)
    selected = select(tokens, 20, "tome", keys=tokens)
    assert len(selected.ids[0].unique()) == 20
    assert bool(selected.gather(tokens).isfinite().all())


def test_keys_of_other_heads_are_refused() -> None:
    images = Images(0)
    with pytest.raises(ValueError, match="keys: expected a width of 5 heads, got 12"):
        images.select("tome", heads=5)
