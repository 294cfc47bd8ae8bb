from __future__ import annotations

import pytest
import torch

from ocvtp_kernels import ops
from tests.cases import DEVICE, assert_within_budget, triton_dtypes
from tests.ops.bipartite_merge.test_bipartite_merge import SHAPES, case

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.bipartite_merge.triton import bipartite_merge

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

EVERY_DTYPE = pytest.mark.parametrize("dtype", triton_dtypes())


@EVERY_DTYPE
@pytest.mark.parametrize("shape", [*(s for s in SHAPES if s[0] < 500), (150, 300, 70, 74, 1)])
def test_bipartite_merge(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tokens, keys, sizes, *numbers = case(shape, dtype=dtype)
    # Rows that are not dense, and keys that no rounding makes equal.
    tokens, keys = tokens.mT.contiguous().mT, keys.float()
    got = bipartite_merge(*(t.to(DEVICE) for t in (tokens, keys, sizes)), *numbers)
    plain = ops.bipartite_merge.reference(tokens, keys, sizes, *numbers)
    oracle = ops.bipartite_merge.reference(tokens.double(), keys.double(), sizes.double(), *numbers)
    assert torch.equal(got[2].cpu(), oracle[2])
    for ours, theirs, best in zip(got[:2], plain[:2], oracle[:2], strict=True):
        assert_within_budget(ours.cpu(), theirs, best)


@EVERY_DTYPE
def test_keys_of_each_dtype_match_as_the_reference_has_them(dtype: torch.dtype) -> None:
    tokens, keys, sizes, *numbers = case((70, 5, 24, 20, 1), dtype=dtype)
    got = bipartite_merge(*(t.to(DEVICE) for t in (tokens, keys, sizes)), *numbers)[2]
    assert torch.equal(got.cpu(), ops.bipartite_merge.reference(tokens, keys, sizes, *numbers)[2])


def test_many_tokens_merge_into_one() -> None:
    tokens, keys, sizes, *_ = case((150, 20, 3, 0, 0), dtype=torch.float32)
    keys[:, 1::2] *= -1
    keys[:, ::2] = keys[:, 77:78] + 1e-3 * keys[:, ::2]
    given = (tokens, keys, sizes, 75)
    got = bipartite_merge(*(t.to(DEVICE) for t in given[:3]), 75)
    plain = ops.bipartite_merge.reference(*given)
    oracle = ops.bipartite_merge.reference(*(t.double() for t in given[:3]), 75)
    assert oracle[1].amax() > 60 and torch.equal(got[2].cpu(), oracle[2])
    for ours, theirs, best in zip(got[:2], plain[:2], oracle[:2], strict=True):
        assert_within_budget(ours.cpu(), theirs, best)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_key_that_is_not_finite_is_like_none(broken: float) -> None:
    tokens, keys, sizes, *_ = case((40, 3, 5, 0, 0), dtype=torch.float32)
    keys[:, 3:12, 1] = broken
    for num_merged in (14, 20):
        got = bipartite_merge(*(t.to(DEVICE) for t in (tokens, keys, sizes)), num_merged)[2]
        expected = ops.bipartite_merge.reference(tokens, keys, sizes, num_merged)[2]
        assert torch.equal(got.cpu(), expected)


def test_batch_invariant() -> None:
    tokens, keys, sizes, *numbers = case((70, 40, 24, 20, 1), batch=3, dtype=torch.float32)
    there = [t.to(DEVICE) for t in (tokens, keys, sizes)]
    together = bipartite_merge(*there, *numbers)
    for image in range(3):
        alone = bipartite_merge(*(t[image : image + 1] for t in there), *numbers)
        assert all(torch.equal(a[0], b[image]) for a, b in zip(alone, together, strict=True))
