"""The importance kernels beside the reference, within the error budget, over awkward shapes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops, use_backend
from tests.cases import DEVICE, assert_within_budget, random_tokens, triton_dtypes

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.attention_received.triton import attention_received
from ocvtp_kernels.triton_common.launch import Launch, watch

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("poisoned")]

# B, H, M, N, d: one of each, heads of one tile and of several, a tile's edge, an empty batch.
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 3, 50, 50, 5),
    (2, 1, 64, 64, 64),
    (1, 1, 7, 70, 100),
    (1, 1, 65, 68, 136),
    (0, 3, 5, 7, 8),
]


def inputs(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, outliers: bool = False
) -> tuple[Tensor, Tensor]:
    """Queries and keys as a fused projection leaves them: heads are strided views."""
    batch, heads, num_queries, num_keys, depth = shape
    q = random_tokens(batch, num_queries, heads, depth, dtype=dtype, outliers=outliers)
    k = random_tokens(batch, num_keys + 1, heads, 2 * depth, seed=1, dtype=dtype)
    return q.to(DEVICE).transpose(1, 2), k.to(DEVICE)[:, 1:, :, depth:].transpose(1, 2)


def assert_like_the_reference(q: Tensor, k: Tensor, mode: str, scale: float | None = None) -> None:
    got = attention_received(q, k, mode, scale).cpu()
    q, k = q.cpu(), k.cpu()
    plain = ops.attention_received.reference(q, k, mode, scale)
    oracle = ops.attention_received.reference(q.double(), k.double(), mode, scale)
    assert_within_budget(got, plain, oracle)


@pytest.mark.parametrize(
    ("mode", "outliers"), [("meanq", False), ("meanq", True), ("cls", True), ("last", False)]
)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", triton_dtypes())
def test_error_budget(
    shape: tuple[int, int, int, int, int], mode: str, outliers: bool, dtype: torch.dtype
) -> None:
    assert_like_the_reference(*inputs(shape, dtype, outliers), mode)


@pytest.mark.parametrize("dtype", triton_dtypes())
def test_error_budget_of_a_vision_encoder(dtype: torch.dtype) -> None:
    # The interpreter walks float32 in short steps, slowly.
    depth = 16 if dtype == torch.float32 else 64
    assert_like_the_reference(*inputs((1, 1, 577, 577, depth), dtype, True), "meanq")


@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize("scale", [0.5, -0.3, 0.0])
def test_a_given_scale(dtype: torch.dtype, scale: float) -> None:
    assert_like_the_reference(*inputs((2, 3, 11, 23, 8), dtype), "meanq", scale)


def test_the_op_reaches_the_kernel() -> None:
    q, k = inputs((2, 3, 11, 23, 8), torch.float32)
    with use_backend("triton"):
        got = torch.ops.ocvtp.attention_received(q, k, "cls")
    assert torch.equal(got, attention_received(q, k, "cls"))


@pytest.mark.parametrize("dtype", triton_dtypes())
def test_two_runs_are_bitwise_equal(dtype: torch.dtype) -> None:
    q, k = inputs((1, 2, 70, 70, 16), dtype)
    assert torch.equal(attention_received(q, k, "meanq"), attention_received(q, k, "meanq"))


@pytest.mark.parametrize("dtype", triton_dtypes())
def test_batch_invariant(dtype: torch.dtype) -> None:
    q, k = inputs((3, 2, 33, 70, 16), dtype)
    batched = attention_received(q, k, "meanq")
    for image in range(3):
        one = slice(image, image + 1)
        # The mean over heads is torch's, which may sum one image in another order than three.
        torch.testing.assert_close(
            attention_received(q[one], k[one], "meanq"), batched[one], rtol=1e-6, atol=0.0
        )


def test_strided_heads_are_not_copied() -> None:
    q, k = inputs((2, 3, 11, 23, 8), torch.float32)
    launches: list[Launch] = []
    with watch(launches.append):
        attention_received(q, k, "meanq")
        attention_received(q.mT.contiguous().mT, k, "meanq")
    assert len(launches) == 4
    assert all(each.arguments["q"].data_ptr() == q.data_ptr() for each in launches[:2])
    assert all(each.arguments["k"].data_ptr() == k.data_ptr() for each in launches)


def test_any_strides_give_the_same() -> None:
    q, k = inputs((2, 3, 11, 23, 8), torch.float32)
    expected = attention_received(q, k, "meanq")
    assert torch.equal(attention_received(q.contiguous(), k.contiguous(), "meanq"), expected)
    turned = q.mT.contiguous().mT, k.mT.contiguous().mT
    assert torch.equal(attention_received(*turned, "meanq"), expected)
    # One head of keys that all heads of queries share has no stride of its own.
    shared = k[:, :1].expand_as(k)
    assert torch.equal(
        attention_received(q, shared, "last"), attention_received(q, shared.contiguous(), "last")
    )


# NumPy, within the interpreter, remarks on it.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize("where", ["query", "key", "infinite key"])
def test_nan_is_not_hidden(dtype: torch.dtype, where: str) -> None:
    q, k = inputs((2, 2, 20, 150, 8), dtype)
    clean = attention_received(q, k, "meanq")
    if where == "query":
        q[0, 1, 16, 3] = math.nan
    else:
        k[0, 1, 140, 3] = math.nan if where == "key" else math.inf
    dirty = attention_received(q, k, "meanq")
    assert dirty[0].isnan().all()
    assert torch.equal(dirty[1], clean[1])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", triton_dtypes())
def test_keys_at_minus_infinity_receive_nothing(dtype: torch.dtype) -> None:
    q, k = inputs((1, 2, 5, 200, 8), dtype)
    q = q.abs()
    # More than a tile of them, and the first: nothing to subtract from comes before.
    k[:, :, :140, 3] = -math.inf
    got = attention_received(q, k, "meanq")
    assert (got[:, :140] == 0).all()
    torch.testing.assert_close(
        got[:, 140:], attention_received(q, k[:, :, 140:], "meanq"), rtol=1e-5, atol=0.0
    )
