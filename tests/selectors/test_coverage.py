import pytest
import torch

from ocvtp_kernels import coverage
from ocvtp_kernels.selectors.coverage import random_coverage
from tests.cases import random_tokens


def test_is_the_mean_of_best_cosines() -> None:
    tokens = random_tokens(2, 15, 6, dtype=torch.float64)
    ids = torch.tensor([[0, 4, 9], [2, 3, 14]])
    for image in range(2):
        best = [
            max(
                float(torch.cosine_similarity(token, tokens[image, kept], dim=0))
                for kept in ids[image].tolist()
            )
            for token in tokens[image]
        ]
        assert float(coverage(tokens, ids)[image]) == pytest.approx(sum(best) / 15, abs=1e-12)


def test_keeping_all_covers_all() -> None:
    tokens = random_tokens(1, 9, 4)
    assert float(coverage(tokens, torch.arange(9)[None])) == pytest.approx(1, abs=1e-6)


def test_random_is_seeded_and_differs_between_seeds() -> None:
    tokens = random_tokens(50, 8)
    first, second = random_coverage(tokens, 10), random_coverage(tokens, 10)
    assert first.shape == (20,) and torch.equal(first, second)
    assert first.unique().numel() == 20
