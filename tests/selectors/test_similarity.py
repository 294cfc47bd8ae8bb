"""Cosines of every two tokens, of which a CPU computes each pair's once."""

from __future__ import annotations

import pytest
import torch

from ocvtp_kernels.selectors.similarity import LEAST_HALVED, cosine
from tests.cases import assert_within_budget, random_tokens

SIZES = (1, 3, LEAST_HALVED - 1, LEAST_HALVED, LEAST_HALVED + 1, 577)


@pytest.mark.parametrize("num_tokens", SIZES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_error_budget(num_tokens: int, dtype: torch.dtype) -> None:
    tokens = random_tokens(2, num_tokens, 40, dtype=dtype)
    wide, exact = tokens.float(), tokens.double()
    plain, oracle = (
        torch.nn.functional.cosine_similarity(rows[:, :, None], rows[:, None], dim=-1)
        for rows in (wide, exact)
    )
    assert_within_budget(cosine(tokens), plain, oracle)


@pytest.mark.parametrize("num_tokens", [size for size in SIZES if size >= LEAST_HALVED])
def test_equal_tokens_are_equally_similar(num_tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(0, num_tokens // 3 + 1, (num_tokens,), generator=generator)
    first = torch.stack([(which == token).int().argmax() for token in which])
    similarity = cosine(random_tokens(2, num_tokens // 3 + 1, 70)[:, which])
    assert torch.equal(similarity, similarity[:, first])
    assert torch.equal(similarity, similarity[:, :, first])


@pytest.mark.parametrize("num_tokens", SIZES)
def test_batch_and_stride_invariant(num_tokens: int) -> None:
    tokens = random_tokens(3, num_tokens + 1, 33)[:, 1:]
    together = cosine(tokens)
    assert torch.equal(together, cosine(tokens.contiguous()))
    for image in range(3):
        assert torch.equal(together[image : image + 1], cosine(tokens[image : image + 1]))


def test_no_images() -> None:
    assert cosine(torch.empty(0, LEAST_HALVED, 4)).shape == (0, LEAST_HALVED, LEAST_HALVED)
