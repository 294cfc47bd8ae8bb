"""The Triton kernels beside the reference, within the error budget, over awkward shapes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import ops, use_backend
from tests.cases import DEVICE, assert_within_budget, random_tokens, to_device, triton_dtypes
from tests.ops.attention_from_rows.test_attention_from_rows import of_shape

pytest.importorskip("triton", reason="triton is not installed")

from ocvtp_kernels.ops.attention_from_rows.triton import attention_from_rows
from ocvtp_kernels.triton_common.launch import Launch, watch

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.usefixtures("poisoned"),
    # NumPy, within the interpreter, remarks on infinities.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

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


def on(device: Any, *tensors: Any) -> Any:
    return [None if each is None else to_device(each, device) for each in tensors]


def received(
    q: Tensor,
    k: Tensor,
    last: Tensor | None = None,
    valid: Tensor | None = None,
    ids: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    got: Tensor = attention_from_rows(q, k, last, valid, ids, scale)
    return got


def assert_like_the_reference(q: Tensor, k: Tensor, *masks: Tensor | None, **others: float) -> None:
    got = received(q, k, *masks, **others).cpu()  # type: ignore[arg-type]
    q, k, *masks = on("cpu", q, k, *masks)
    plain = ops.attention_from_rows.reference(q, k, *masks, **others)
    oracle = ops.attention_from_rows.reference(q.double(), k.double(), *masks, **others)
    assert_within_budget(got, plain, oracle)


@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("row", [slice(None), slice(1), slice(-1, None)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", triton_dtypes())
def test_error_budget(
    shape: tuple[int, int, int, int, int], row: slice, outliers: bool, dtype: torch.dtype
) -> None:
    q, k = inputs(shape, dtype, outliers)
    assert_like_the_reference(q[:, :, row], k)


MASKED = [(8, 12, 6, 1, 150, 8), (2, 2, 2, 70, 200, 8), (1, 6, 2, 50, 130, 24), (0, 2, 1, 3, 9, 8)]
MASKS = pytest.mark.parametrize(
    "masks", [(False, False), (True, False), (False, True), (True, True)]
)


@MASKS
@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("shape", MASKED)
@pytest.mark.parametrize("dtype", triton_dtypes())
def test_error_budget_behind_masks(
    shape: tuple[int, ...], masks: tuple[bool, bool], outliers: bool, dtype: torch.dtype
) -> None:
    assert_like_the_reference(*on(DEVICE, *of_shape(shape, dtype, outliers, masks)))


@pytest.mark.parametrize("dtype", triton_dtypes())
def test_masked_keys_receive_nothing_and_tell_nothing(dtype: torch.dtype) -> None:
    rows = of_shape((2, 4, 2, 60, 97, 16), dtype, masks=(True, False))
    valid = torch.arange(97) % 3 > 0
    results = []
    for odd in (0.0, math.nan, math.inf, -math.inf):
        k = rows.k.clone()
        k[:, :, ~valid] = odd
        k[:, :, 60:] = odd
        masks = torch.arange(60).expand(2, 60), valid.expand(2, 97)
        results.append(received(*on(DEVICE, rows.q, k, *masks)).cpu())
    assert (results[0][:, ~valid] == 0).all() and (results[0][:, 60:] == 0).all()
    assert all(torch.equal(each, results[0]) for each in results)


def test_rows_that_see_no_key_count_for_nothing() -> None:
    rows = of_shape((3, 2, 1, 20, 70, 8), masks=(False, False))
    last = torch.full((3, 20), -1)
    last[0, 17], last[2] = 40, 69
    valid = torch.ones(3, 70) > 0
    valid[2] = False
    q = rows.q.clone()
    q[0, :, :17] = math.nan
    got = received(*on(DEVICE, q, rows.k, last, valid)).cpu()
    alone = received(*on(DEVICE, q[:1, :, 17:18], rows.k[:1], last[:1, 17:18])).cpu()
    torch.testing.assert_close(got[:1], alone)
    assert (got[1:] == 0).all()


def test_nan_of_a_row_stays_with_the_keys_that_it_sees() -> None:
    q, k, _, valid = of_shape((2, 2, 2, 20, 70, 8))
    assert valid is not None
    last = torch.full((2, 20), 60)
    last[:, 3] = 30
    q = q.clone()
    q[0, 1, 3] = math.nan
    got = received(*on(DEVICE, q, k, last, valid)).cpu()
    sees = valid[0] & (torch.arange(70) <= 30)
    assert got[0, sees].isnan().all() and not got[0, ~sees].isnan().any()
    assert (got[0, ~valid[0]] == 0).all() and not got[1].isnan().any()


@pytest.mark.parametrize("dtype", triton_dtypes())
def test_error_budget_of_a_vision_encoder(dtype: torch.dtype) -> None:
    # The interpreter walks float32 in short steps, slowly.
    depth = 16 if dtype == torch.float32 else 64
    assert_like_the_reference(*inputs((1, 1, 577, 577, depth), dtype, True))


@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize("scale", [0.5, -0.3, 0.0])
def test_a_given_scale(dtype: torch.dtype, scale: float) -> None:
    assert_like_the_reference(*inputs((2, 3, 11, 23, 8), dtype), scale=scale)


def test_the_op_reaches_the_kernel() -> None:
    q, k = inputs((2, 3, 11, 23, 8), torch.float32)
    with use_backend("triton"):
        got = torch.ops.ocvtp.attention_from_rows(q, k)
    assert torch.equal(got, received(q, k))


@pytest.mark.parametrize("dtype", triton_dtypes())
def test_two_runs_are_bitwise_equal(dtype: torch.dtype) -> None:
    q, k = inputs((1, 2, 70, 70, 16), dtype)
    assert torch.equal(received(q, k), received(q, k))


@pytest.mark.parametrize("dtype", triton_dtypes())
def test_batch_invariant(dtype: torch.dtype) -> None:
    q, k = inputs((3, 2, 33, 70, 16), dtype)
    batched = received(q, k)
    for image in range(3):
        one = slice(image, image + 1)
        # The mean over heads is torch's, which may sum one image in another order than three.
        torch.testing.assert_close(received(q[one], k[one]), batched[one], rtol=1e-6, atol=0.0)


def test_strided_heads_are_not_copied() -> None:
    q, k = inputs((2, 3, 11, 23, 8), torch.float32)
    launches: list[Launch] = []
    with watch(launches.append):
        received(q, k)
        received(q.mT.contiguous().mT, k)
    assert len(launches) == 4
    assert all(each.arguments["q"].data_ptr() == q.data_ptr() for each in launches[:2])
    assert all(each.arguments["k"].data_ptr() == k.data_ptr() for each in launches)


def test_any_strides_give_the_same() -> None:
    q, k = inputs((2, 3, 11, 23, 8), torch.float32)
    expected = received(q, k)
    assert torch.equal(received(q.contiguous(), k.contiguous()), expected)
    turned = q.mT.contiguous().mT, k.mT.contiguous().mT
    assert torch.equal(received(*turned), expected)
    # One head of keys that all heads of queries share has no stride of its own.
    shared = k[:, :1].expand_as(k)
    assert torch.equal(received(q, shared), received(q, shared.contiguous()))


@pytest.mark.parametrize("dtype", triton_dtypes())
@pytest.mark.parametrize("where", ["query", "key", "infinite key"])
def test_nan_is_not_hidden(dtype: torch.dtype, where: str) -> None:
    q, k = inputs((2, 2, 20, 150, 8), dtype)
    clean = received(q, k)
    if where == "query":
        q[0, 1, 16, 3] = math.nan
    else:
        k[0, 1, 140, 3] = math.nan if where == "key" else math.inf
    dirty = received(q, k)
    assert dirty[0].isnan().all()
    assert torch.equal(dirty[1], clean[1])


@pytest.mark.parametrize("dtype", triton_dtypes())
def test_keys_at_minus_infinity_receive_nothing(dtype: torch.dtype) -> None:
    q, k = inputs((1, 2, 5, 200, 8), dtype)
    q = q.abs()
    # More than a tile of them, and the first: nothing to subtract from comes before.
    k[:, :, :140, 3] = -math.inf
    got = received(q, k)
    assert (got[:, :140] == 0).all()
    torch.testing.assert_close(got[:, 140:], received(q, k[:, :, 140:]), rtol=1e-5, atol=0.0)
