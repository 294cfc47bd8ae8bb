from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import native, ops
from tests.cases import CPU_BACKENDS, ISAS, assert_within_budget, peak_bytes, random_tokens, running

MODES = ["meanq", "cls", "last"]
HALF = [torch.float16, torch.bfloat16]
# The last multiplies bfloat16, and is AVX-512 otherwise.
NATIVE = (*ISAS, "avx512_bf16")
BACKENDS = (*CPU_BACKENDS, "avx512_bf16")


def arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    heads = random_tokens(batch, 13, 3, 8, dtype=dtype).transpose(1, 2)
    return heads, heads.flip(-1), "meanq"


def inputs(
    num_tokens: int, dtype: torch.dtype = torch.float32, outliers: bool = False
) -> tuple[Tensor, Tensor]:
    q = random_tokens(2, num_tokens, 3, 16, dtype=dtype, outliers=outliers).transpose(1, 2)
    return q, random_tokens(2, num_tokens, 3, 16, seed=1, dtype=dtype).transpose(1, 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_is_the_mean_of_the_attention_maps(backend: str, mode: str) -> None:
    q, k = inputs(11, torch.float64)
    # Values that are the identity make scaled-dot-product attention return the map itself.
    eye = torch.eye(11, dtype=torch.float64).expand(2, 3, 11, 11)
    maps = torch.nn.functional.scaled_dot_product_attention(q, k, eye).mean(1)
    expected = {"meanq": maps.mean(1), "cls": maps[:, 0], "last": maps[:, -1]}[mode]
    with running(backend):
        got = torch.ops.ocvtp.attention_received(q, k, mode)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_tokens", [1, 50, 577])
@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_error_budget(
    backend: str, mode: str, num_tokens: int, outliers: bool, dtype: torch.dtype
) -> None:
    q, k = inputs(num_tokens, dtype, outliers)
    with running(backend):
        got = torch.ops.ocvtp.attention_received(q, k, mode)
    plain = ops.attention_received.reference(q, k, mode)
    assert_within_budget(got, plain, ops.attention_received.reference(q.double(), k.double(), mode))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
@pytest.mark.parametrize("num_queries", [31, 576, 2000])
@pytest.mark.parametrize("num_keys", [3, 31, 577])
def test_error_budget_of_equal_attention(
    backend: str, dtype: torch.dtype, num_queries: int, num_keys: int
) -> None:
    """Sums of terms that all round the same way."""
    q = random_tokens(2, 3, num_queries, 16, dtype=dtype)
    k = random_tokens(2, 3, num_keys, 16, seed=1, dtype=dtype)
    with running(backend):
        got = torch.ops.ocvtp.attention_received(q, k, "meanq", 0.0)
    plain = ops.attention_received.reference(q, k, "meanq", 0.0)
    exact = ops.attention_received.reference(q.double(), k.double(), "meanq", 0.0)
    assert_within_budget(got, plain, exact)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_error_budget_of_a_wide_head(backend: str, dtype: torch.dtype) -> None:
    q, k = (random_tokens(4, 1, 49, 1024, seed=seed, dtype=dtype) for seed in (0, 1))
    with running(backend):
        got = torch.ops.ocvtp.attention_received(q, k, "meanq")
    plain = ops.attention_received.reference(q, k, "meanq")
    assert_within_budget(
        got, plain, ops.attention_received.reference(q.double(), k.double(), "meanq")
    )


@pytest.mark.parametrize("isa", NATIVE)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_batch_and_thread_invariant(isa: str, mode: str, dtype: torch.dtype) -> None:
    q, k = inputs(300, dtype)
    threads = torch.get_num_threads()
    try:
        with running(isa):
            torch.set_num_threads(1)
            one = torch.ops.ocvtp.attention_received(q, k, mode)
            torch.set_num_threads(3)
            assert torch.equal(torch.ops.ocvtp.attention_received(q, k, mode), one)
            assert torch.equal(torch.ops.ocvtp.attention_received(q[1:], k[1:], mode), one[1:])
    finally:
        torch.set_num_threads(threads)


def test_other_queries_than_keys_and_a_given_scale() -> None:
    q, k = inputs(11, torch.float64)
    got = torch.ops.ocvtp.attention_received(q[:, :, :4], k, "meanq", 0.5)
    expected = (0.5 * q[:, :, :4] @ k.mT).softmax(-1).mean((1, 2))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def every_half(dtype: torch.dtype) -> Tensor:
    """All numbers of a half dtype, subnormal ones too, that no softmax overflows on."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    return bits[bits.isfinite() & (bits.abs() < 80)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_half_precision_gives_the_bits_of_its_numbers_in_float32(
    isa: str, mode: str, dtype: torch.dtype, scale: float
) -> None:
    numbers = every_half(dtype)
    if scale > 1:
        numbers = numbers[numbers.abs() < 1e-4]
    k = numbers[: numbers.numel() // 33 * 33].reshape(33, -1).T[None, None]
    q = torch.eye(33, dtype=dtype)[None, None, 5:8]
    with running(isa):
        got = torch.ops.ocvtp.attention_received(q, k, mode, scale)
        wide = torch.ops.ocvtp.attention_received(q.float(), k.float(), mode, scale)
    assert torch.equal(got, wide)


@pytest.mark.parametrize("isa", NATIVE)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan])
def test_infinities_and_nan_of_half_precision(isa: str, dtype: torch.dtype, odd: float) -> None:
    q, k = (x.abs() for x in inputs(40, dtype))
    k[0, 1, 7, 3] = odd
    for mode in MODES:
        with running(isa):
            got = torch.ops.ocvtp.attention_received(q, k, mode)
        expected = ops.attention_received.reference(q.float(), k.float(), mode)
        torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", HALF)
def test_native_kernel_makes_no_copy_of_keys(mode: str, dtype: torch.dtype) -> None:
    if (reason := native.missing_reason("cpu")) is not None:
        pytest.skip(reason)
    q, k = (random_tokens(1, 200, 64, 64, seed=s, dtype=dtype).transpose(1, 2) for s in (0, 1))
    peak = peak_bytes(lambda: torch.ops.ocvtp.attention_received(q, k, mode))
    assert peak < k.numel() * k.itemsize / 2


def test_native_kernel_takes_a_tenth_of_the_memory() -> None:
    if (reason := native.missing_reason("cpu")) is not None:
        pytest.skip(reason)
    q, k = inputs(577)
    plain = peak_bytes(lambda: ops.attention_received.reference(q, k, "meanq"))
    assert plain >= 2 * 3 * 577 * 577 * 4
    assert peak_bytes(lambda: torch.ops.ocvtp.attention_received(q, k, "meanq")) < plain / 10


def test_bad_input_is_named() -> None:
    q, k = inputs(11)
    with pytest.raises(ValueError, match="mode: expected one of"):
        torch.ops.ocvtp.attention_received(q, k, "mean")
    with pytest.raises(ValueError, match="k: expected size 3 in dimension 1"):
        torch.ops.ocvtp.attention_received(q, k[:, :2], "cls")
    with pytest.raises(ValueError, match=r"q: expected shape \[B, H, M, d\]"):
        torch.ops.ocvtp.attention_received(q[0], k, "cls")
