"""The merging kernels beside the reference, within the error budget, ties and NaN included."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops
from tests.cases import DEVICE, assert_within_budget, random_tokens, triton_dtypes

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.merge.triton import merge

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

# B, K, N, D, C: one of each, slots of one block and of several, a tile's edge, an empty batch.
SHAPES = [
    (1, 1, 1, 5, 1),
    (2, 7, 1, 24, 19),
    (1, 7, 50, 64, 64),
    (1, 65, 50, 24, 70),
    (1, 130, 33, 5, 33),
    (0, 7, 20, 8, 8),
]


def inputs(
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype,
    outliers: bool = False,
    final_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Slots, and tokens that are strided views of an encoder's output with its class token."""
    batch, num_slots, num_tokens, depth, width = shape
    q = random_tokens(batch, num_slots, depth, dtype=dtype, outliers=outliers)
    k = random_tokens(batch, num_tokens + 1, depth, seed=1, dtype=dtype)
    final_tokens = random_tokens(
        batch, num_tokens + 1, width, seed=2, dtype=final_dtype or dtype, outliers=outliers
    )
    return q.to(DEVICE), k.to(DEVICE)[:, 1:], final_tokens.to(DEVICE)[:, 1:]


def assert_like_the_reference(
    q: Tensor, k: Tensor, final_tokens: Tensor, scale: float | None = None
) -> None:
    got = merge(q, k, final_tokens, scale)
    q, k, final_tokens = q.cpu(), k.cpu(), final_tokens.cpu()
    plain = ops.merge.reference(q, k, final_tokens, scale)
    oracle = ops.merge.reference(q.double(), k.double(), final_tokens.double(), scale)
    for actual, rough, exact in zip(got, plain, oracle, strict=True):
        assert_within_budget(actual.cpu(), rough, exact)


def few_values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Whole numbers, whose products and sums are exact: equal logits are equal bits."""
    return (2 * random_tokens(*shape, seed=seed)).round().to(dtype).to(DEVICE)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("dtype", triton_dtypes())
def test_error_budget(
    shape: tuple[int, int, int, int, int], outliers: bool, dtype: torch.dtype
) -> None:
    assert_like_the_reference(*inputs(shape, dtype, outliers))


@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize("final_dtype", triton_dtypes())
def test_final_tokens_of_another_dtype(dtype: torch.dtype, final_dtype: torch.dtype) -> None:
    assert_like_the_reference(*inputs((2, 7, 33, 8, 20), dtype, True, final_dtype))


@pytest.mark.parametrize("dtype", triton_dtypes())
def test_error_budget_of_a_vision_encoder(dtype: torch.dtype) -> None:
    assert_like_the_reference(*inputs((1, 40, 577, 16, 24), dtype, True))


@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize("scale", [0.5, -0.3])
def test_a_given_scale(dtype: torch.dtype, scale: float) -> None:
    assert_like_the_reference(*inputs((2, 7, 33, 8, 20), dtype), scale)


@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize("num_slots", [7, 130])
def test_ties_go_to_the_lowest_slot(dtype: torch.dtype, num_slots: int) -> None:
    q = few_values(1, num_slots, 8, dtype=dtype)
    k = few_values(1, 40, 8, seed=1, dtype=dtype)
    final_tokens = random_tokens(1, 40, 10, seed=2, dtype=dtype).to(DEVICE)
    # In the first block of slots and in the last.
    for copy in (3, num_slots - 1):
        q[:, copy] = q[:, 1]
    merged, mass = merge(q, k, final_tokens)
    for copy in (3, num_slots - 1):
        assert (mass[:, copy] == 0).all() and (merged[:, copy] == 0).all()
    assert_like_the_reference(q, k, final_tokens)


@pytest.mark.parametrize("dtype", triton_dtypes())
def test_equal_slots_leave_all_to_the_first(dtype: torch.dtype) -> None:
    k = random_tokens(2, 40, 8, dtype=dtype).to(DEVICE)
    final_tokens = random_tokens(2, 40, 10, seed=2, dtype=dtype).to(DEVICE)
    merged, mass = merge(torch.zeros(2, 80, 8, dtype=dtype, device=DEVICE), k, final_tokens)
    assert (mass[:, 0] == 0.5).all()
    assert (mass[:, 1:] == 0).all() and (merged[:, 1:] == 0).all()
    mean = final_tokens.double().mean(1)
    torch.testing.assert_close(merged[:, 0].double(), mean, rtol=0.0, atol=1e-2)


def test_two_runs_are_bitwise_equal() -> None:
    arguments = inputs((2, 70, 40, 24, 40), torch.float32)
    for first, second in zip(merge(*arguments), merge(*arguments), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", triton_dtypes())
def test_batch_invariant(dtype: torch.dtype) -> None:
    arguments = inputs((3, 70, 40, 24, 40), dtype)
    batched = merge(*arguments)
    for image in range(3):
        one = slice(image, image + 1)
        alone = merge(*(argument[one] for argument in arguments))
        for a, b in zip(alone, batched, strict=True):
            assert torch.equal(a, b[one])


def test_any_strides_give_the_same() -> None:
    arguments = inputs((2, 7, 33, 8, 20), torch.float32)
    expected = merge(*arguments)
    for turned in (
        [argument.contiguous() for argument in arguments],
        [argument.mT.contiguous().mT for argument in arguments],
    ):
        for got, wanted in zip(merge(*turned), expected, strict=True):
            assert torch.equal(got, wanted)


# NumPy, within the interpreter, remarks on it.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["token", "first slot", "last slot", "final"])
def test_nan_stands_where_the_reference_has_it(bad: float, where: str) -> None:
    q, k, final_tokens = inputs((1, 70, 40, 8, 20), torch.float32)
    q[..., 3], k[..., 3] = q[..., 3].abs() + 1, k[..., 3].abs() + 1
    if where == "token":
        k[0, 35, 3] = bad
    elif where == "final":
        final_tokens[0, 35, 3] = bad
    else:
        q[0, 0 if where == "first slot" else 69, 3] = bad
    got, expected = (
        merge(q, k, final_tokens),
        ops.merge.reference(q.cpu(), k.cpu(), final_tokens.cpu()),
    )
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-5, equal_nan=True)
