"""The merge by assignment on the native CPU kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops
from tests.cases import assert_within_budget, every_isa, random_tokens  # noqa: F401

pytestmark = pytest.mark.usefixtures("every_isa")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def merge_case(
    batch: int, num_tokens: int, width: int, num_owners: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(num_tokens)
    tokens = random_tokens(batch, num_tokens, width, dtype=torch.float64, outliers=True)
    assignment = torch.randint(-1, num_owners, (batch, num_tokens), generator=generator)
    weight = random_tokens(batch, num_tokens, seed=1, dtype=torch.float64)
    return tokens, assignment, weight, num_owners


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 30, 7, 40), (3, 129, 65, 1), (1, 577, 200, 64), (0, 9, 5, 2)]
)
def test_merged_sums_keep_the_error_budget(shape: tuple[int, int, int, int]) -> None:
    tokens, assignment, weight, num_owners = merge_case(*shape)
    got, plain, exact = (
        function(tokens.to(dtype), assignment, weight.to(dtype), num_owners)
        for function, dtype in (
            (ops.scatter_merge, torch.float32),
            (ops.scatter_merge.reference, torch.float32),
            (ops.scatter_merge.reference, torch.float64),
        )
    )
    for ours, theirs, best in zip(got, plain, exact, strict=True):
        assert_within_budget(ours, theirs, best)


@DTYPES
def test_merged_whole_numbers_are_exact(dtype: torch.dtype) -> None:
    tokens, assignment, weight, num_owners = merge_case(2, 100, 37, 9)
    whole = tokens.to(dtype).round(), assignment, (2 * weight).to(dtype).round(), num_owners
    views = (whole[0].mT.contiguous().mT, assignment.mT.contiguous().mT, whole[2], num_owners)
    for case in (whole, views):
        got, expected = ops.scatter_merge(*case), ops.scatter_merge.reference(*case)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_batch_invariant() -> None:
    tokens, assignment, weight, num_owners = merge_case(3, 300, 130, 50)
    together = ops.scatter_merge(tokens, assignment, weight, num_owners)
    for image in range(3):
        one = slice(image, image + 1)
        alone = ops.scatter_merge(tokens[one], assignment[one], weight[one], num_owners)
        assert all(torch.equal(a[0], b[image]) for a, b in zip(alone, together, strict=True))


def test_tokens_without_an_assignment_are_in_no_sum() -> None:
    tokens, _, weight, _ = merge_case(1, 4, 3, 2)
    tokens[0, 1] = torch.nan
    sums, mass = ops.scatter_merge(tokens, torch.tensor([[1, -1, 1, 7]]), weight, 2)
    assert torch.equal(sums[0, 0], torch.zeros(3, dtype=torch.float64)) and mass[0, 0] == 0
    expected = weight[0, 0] * tokens[0, 0] + weight[0, 2] * tokens[0, 2]
    torch.testing.assert_close(sums[0, 1], expected)
    torch.testing.assert_close(mass[0, 1], weight[0, 0] + weight[0, 2])
