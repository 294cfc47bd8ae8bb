from __future__ import annotations

import torch

from bench.published import padded_ids, published_prune
from tests.cases import assert_kept, random_pruner, random_tokens


def test_picks_are_a_set_that_scores_pad() -> None:
    attention = torch.tensor([[[0.1, 0.9, 0.2, 0.0, 0.3], [0.5, 0.6, 0.1, 0.2, 0.4]]])
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.8, 0.2]])
    # Both slots pick 1; 3 and 2 have the highest scores of the others.
    assert padded_ids(attention, scores, 3) == [1, 2, 3]


def test_it_keeps_what_ours_keeps() -> None:
    pruner = random_pruner()
    tokens, final = random_tokens(3, 30, 12), random_tokens(3, 30, 5, seed=1)
    scores, slots = random_tokens(3, 30, seed=2), random_tokens(3, 7, 10, seed=3)
    kept, ids = published_prune(pruner, tokens, final, slots, scores, 7)
    assert_kept(ids, 7, 30)
    expected = pruner.freeze()(tokens, final, 7, scores, slots)
    assert torch.equal(ids, expected.ids) and torch.equal(kept, expected.tokens)
