"""ApET: how well a basis explains tokens, where it is singular too, and what is merged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ocvtp_kernels.selectors.apet import approximation_error, merge_into, orthonormal
from ocvtp_kernels.selectors.registry import select
from ocvtp_kernels.selectors.similarity import squared_distances
from tests.cases import assert_kept, assert_within_budget, random_tokens

BASIS = torch.tensor([[3, 0, 17, 8], [1, 2, 3, 4]])


def by_least_squares(tokens: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """float64, by NumPy."""
    errors = []
    for image, ids in zip(tokens.double().numpy(), basis.numpy(), strict=True):
        span = image[ids].T
        rest = image.T - span @ np.linalg.lstsq(span, image.T, rcond=None)[0]
        errors.append(np.linalg.norm(rest, axis=0))
    return torch.from_numpy(np.stack(errors))


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_errors_are_those_of_least_squares(offset: float, dtype: torch.dtype) -> None:
    tokens = (random_tokens(2, 20, 33).double() + offset).to(dtype)
    wanted = by_least_squares(tokens, BASIS).scatter(1, BASIS, 0.0)
    wide = tokens if dtype == torch.float64 else tokens.float()
    found = approximation_error(tokens, BASIS)
    assert found.dtype == wide.dtype
    if dtype == torch.float64:
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        return
    span = torch.stack([image[ids] for image, ids in zip(wide, BASIS, strict=True)])
    plain = torch.linalg.lstsq(span.mT, wide.mT, driver="gelsd").solution
    plain = (wide - plain.mT @ span).norm(dim=2).scatter(1, BASIS, 0.0)
    assert_within_budget(found, plain, wanted)


def test_a_basis_that_depends_on_itself_explains_as_much() -> None:
    tokens = random_tokens(1, 12, 20).double()
    tokens[:, 5], tokens[:, 6] = tokens[:, 3], tokens[:, 3] - 2 * tokens[:, 4]
    few, many = torch.tensor([[3, 4]]), torch.tensor([[3, 4, 5, 6]])
    found = approximation_error(tokens, many)
    torch.testing.assert_close(found, approximation_error(tokens, few))
    assert not found[0, 3:7].any() and (found[0, 7:] > 0).all()


def test_axes_are_orthonormal_or_nothing() -> None:
    rows = random_tokens(2, 6, 9).double()
    rows[:, 2], rows[:, 3], rows[:, 4, 5] = 0, rows[:, 0] * 3, torch.nan
    rows[:, 5] = rows[:, 1] + 1e-6 * rows[:, 5]
    axes = orthonormal(rows)
    wanted = torch.diag(torch.tensor([1.0, 1, 0, 0, 0, 1], dtype=torch.float64)).expand(2, 6, 6)
    torch.testing.assert_close(axes @ axes.mT, wanted, rtol=0, atol=1e-12)
    # Nearly parallel rows span what they span.
    rest = rows[:, 5] - (rows[:, None, 5] @ axes.mT @ axes)[:, 0]
    assert rest.abs().max() < 1e-14


@pytest.mark.parametrize("kind", ["alike", "zero", "two kinds", "one channel"])
def test_singular_images_keep_exactly_the_budget(kind: str) -> None:
    tokens = random_tokens(2, 40, 16)
    if kind in ("alike", "zero"):
        tokens = tokens[:, :1].expand(-1, 40, -1) * (kind == "alike")
    elif kind == "two kinds":
        tokens = tokens[:, torch.arange(40) % 2]
    else:
        tokens = tokens * torch.eye(16)[0]
    for budget in (1, 7, 39, 40):
        found = select(tokens, budget, "apet")
        assert_kept(found.ids, budget, 40)
        assert found.tokens is not None and found.tokens.isfinite().all()
        # What is left of every token is nothing: ties go to the lowest ids.
        assert found.ids.tolist() == [list(range(budget))] * 2
        for index in range(2):
            alone = select(tokens[index : index + 1], budget, "apet")
            assert torch.equal(alone.ids[0], found.ids[index])


def test_a_kept_token_is_the_mean_of_those_like_it() -> None:
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 0.1], [0.1, 4.0], [0.0, 6.0]]])
    merged = merge_into(tokens, torch.tensor([[0, 3]]))
    wanted = torch.stack([tokens[0, [0, 2]].mean(0), tokens[0, [1, 3, 4]].mean(0)])
    torch.testing.assert_close(merged[0], wanted)
    whole = select(tokens, 5, "apet")
    assert whole.tokens is not None and torch.equal(whole.tokens, tokens)
    unmerged = select(tokens, 2, "apet", merge=False)
    assert unmerged.tokens is not None
    assert torch.equal(unmerged.tokens[0], tokens[0, unmerged.ids[0]])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_tokens_that_are_not_finite_are_merged_into_none(value: float) -> None:
    tokens = random_tokens(1, 30, 16)
    tokens[:, 7, 3] = value
    for budget, num_basis in ((3, 10), (29, 10), (29, 30)):
        found = select(tokens, budget, "apet", num_basis=num_basis)
        assert found.tokens is not None and found.tokens.isfinite().all()
        assert not (found.ids == 7).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 30, 300])
def test_distances_are_zero_between_equals(num_tokens: int, dtype: torch.dtype) -> None:
    tokens = random_tokens(2, num_tokens, 40, dtype=dtype)
    tokens[:, num_tokens // 2 :] = tokens[:, :1]
    exact = tokens.double()
    found, oracle = squared_distances(tokens), torch.cdist(exact, exact).square()
    assert found.dtype == torch.float32
    equal = found[:, num_tokens // 2 :, num_tokens // 2 :]
    assert not equal.any()
    wide = tokens.float()
    norms = wide.square().sum(2)
    plain = norms[:, :, None] + norms[:, None] - 2 * wide @ wide.mT
    assert_within_budget(found, plain, oracle)
