from __future__ import annotations

import pytest
import torch

from ocvtp_kernels import ops
from tests.cases import DEVICE, assert_within_budget, random_tokens, triton_dtypes
from tests.ops.greedy.cases import upcast

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.scatter_merge.triton import scatter_merge

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

EVERY_DTYPE = pytest.mark.parametrize("dtype", triton_dtypes())


@EVERY_DTYPE
@pytest.mark.parametrize(
    ("num_tokens", "dim", "num_owners"), [(1, 1, 1), (37, 10, 5), (130, 600, 40), (1500, 3, 2)]
)
def test_scatter_merge(num_tokens: int, dim: int, num_owners: int, dtype: torch.dtype) -> None:
    tokens = random_tokens(3, dim, num_tokens, dtype=dtype).transpose(1, 2)
    generator = torch.Generator().manual_seed(7)
    assignment = torch.randint(-1, num_owners, (num_tokens, 3), generator=generator).t()
    weight = random_tokens(3, num_tokens, seed=8, dtype=dtype)
    there = (tokens.to(DEVICE), assignment.to(DEVICE), weight.to(DEVICE))
    got = (tensor.cpu() for tensor in scatter_merge(*there, num_owners))
    plain = ops.scatter_merge.reference(upcast(tokens), assignment, upcast(weight), num_owners)
    oracle = ops.scatter_merge.reference(tokens.double(), assignment, weight.double(), num_owners)
    for a, b, c in zip(got, plain, oracle, strict=True):
        assert_within_budget(a, b, c)


def test_tokens_without_an_assignment_are_never_read() -> None:
    tokens = random_tokens(1, 37, 5)
    assignment = torch.arange(37)[None] % 4 - 1
    tokens[assignment < 0] = float("nan")
    weight = torch.ones(1, 37, device=DEVICE)
    sums, _ = scatter_merge(tokens.to(DEVICE), assignment.to(DEVICE), weight, 3)
    assert sums.isfinite().all()
