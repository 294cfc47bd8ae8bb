from __future__ import annotations

import math
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import native, ops
from tests.cases import CPU_BACKENDS, ISAS, assert_within_budget, peak_bytes, random_tokens, running
from tests.ops.raw_calls import B, D, H, M, N, RawCall

HALF = [torch.float16, torch.bfloat16]
DTYPES = pytest.mark.parametrize("dtype", [*HALF, torch.float32])
BACKEND = pytest.mark.parametrize("backend", (*CPU_BACKENDS, "avx512_bf16"))
CPU = pytest.mark.parametrize("isa", (*ISAS, "avx512_bf16"))
# Batch, query heads, key heads, rows, keys, channels: one row, few and many, heads that share keys.
# Of so many rows in all that the largest error of plain PyTorch is not one row's luck.
SHAPES = [
    (24, 12, 12, 1, 37, 16),
    (16, 24, 8, 1, 130, 24),
    (1, 4, 1, 40, 70, 8),
    (2, 2, 2, 97, 97, 16),
]


def arguments(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    case = of_shape((batch, 4, 2, 3, 13, 8), dtype)
    ids = torch.tensor([4, 0, -1, 12, 3]).expand(batch, 5)
    # Without NaN, as images may trade places while their masks do not.
    return case.q, case.k.nan_to_num(), case.last, case.valid, ids, 0.3


RAW_CALLS = {
    "attention_from_rows": RawCall(
        {
            "q": random_tokens(B, H, M, D),
            "k": random_tokens(B, H, N, D),
            "last": torch.arange(M).expand(B, M) + 5,
            "valid": torch.arange(N).expand(B, N) % 4 > 0,
            "scale": 0.3,
        },
        {"last": ["none"], "valid": ["none"]},
        measures=("q", "k"),
    ),
}


class Rows(NamedTuple):
    """What the op takes; heads as a decoder's projections leave them."""

    q: Tensor
    k: Tensor
    last: Tensor | None
    valid: Tensor | None

    def run(self, **others: Any) -> Tensor:
        got: Tensor = torch.ops.ocvtp.attention_from_rows(*self, **others)
        return got

    def of(self, images: slice) -> Rows:
        return Rows(*(None if each is None else each[images] for each in self))

    def to(self, dtype: torch.dtype) -> Rows:
        return self._replace(q=self.q.to(dtype), k=self.k.to(dtype))


def of_shape(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    outliers: bool = False,
    masks: tuple[bool, bool] = (True, True),
) -> Rows:
    """Rows at the end of the keys, under a causal mask; every fifth does not count.

    Masked keys are NaN, at the left, in the middle and, in other images than the first, right.
    """
    batch, heads, key_heads, rows, keys, depth = shape
    q = random_tokens(batch, rows, heads, depth, dtype=dtype, outliers=outliers).transpose(1, 2)
    k = random_tokens(batch, keys, key_heads, depth, seed=1, dtype=dtype).transpose(1, 2)
    row = torch.arange(rows)
    last = torch.where(row % 5 == 4, -1, row + keys - rows).expand(batch, rows)
    key, image = torch.arange(keys), torch.arange(batch)[:, None]
    valid = (key % 7 != 2) & (key >= 2) & (key < keys - 3 * (image % 4))
    if masks[1]:
        k = k.masked_fill(~valid[:, None, :, None], math.nan)
    return Rows(q, k, last if masks[0] else None, valid if masks[1] else None)


def by_rows(rows: Rows, scale: float | None = None) -> Tensor:
    """The formula in float64, one softmax after another."""
    q, k = rows.q.double(), rows.k.double()
    batch, heads, num_rows, depth = q.shape
    received = q.new_zeros(batch, k.shape[2])
    for image in range(batch):
        terms = 0
        for head, row in product(range(heads), range(num_rows)):
            keys = torch.arange(k.shape[2])
            if rows.valid is not None:
                keys = keys[rows.valid[image]]
            if rows.last is not None:
                keys = keys[keys <= rows.last[image, row]]
            own = k[image, head * k.shape[1] // heads, keys]
            logits = own @ q[image, head, row] * (depth**-0.5 if scale is None else scale)
            received[image, keys] += logits.softmax(0)
            terms += len(keys) > 0
        received[image] /= max(1, terms)
    return received


MASKS = pytest.mark.parametrize(
    "masks", [(False, False), (True, False), (False, True), (True, True)]
)


@BACKEND
@MASKS
@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_mean_of_softmaxes(
    backend: str, shape: tuple[int, ...], masks: tuple[bool, bool]
) -> None:
    rows = of_shape(shape, torch.float64, masks=masks)
    with running(backend):
        for scale in (None, -0.4):
            torch.testing.assert_close(
                rows.run(scale=scale), by_rows(rows, scale), rtol=1e-12, atol=1e-14
            )


@BACKEND
@MASKS
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("outliers", [False, True])
@DTYPES
def test_error_budget(
    backend: str,
    shape: tuple[int, ...],
    masks: tuple[bool, bool],
    outliers: bool,
    dtype: torch.dtype,
) -> None:
    rows = of_shape(shape, dtype, outliers, masks)
    reference = ops.attention_from_rows.reference
    with running(backend):
        got = rows.run()
    assert got.dtype == torch.float32
    assert_within_budget(got, reference(*rows), reference(*rows.to(torch.float64)))


@BACKEND
@DTYPES
def test_masked_keys_receive_nothing_and_tell_nothing(backend: str, dtype: torch.dtype) -> None:
    rows = of_shape((2, 4, 2, 60, 97, 16), dtype, masks=(True, False))
    valid = torch.arange(97) % 3 > 0
    rows = rows._replace(valid=valid.expand(2, 97), last=torch.arange(60).expand(2, 60))
    results = []
    with running(backend):
        for odd in (0.0, math.nan, math.inf, -math.inf):
            k = rows.k.clone()
            k[:, :, ~valid] = odd
            k[:, :, 60:] = odd
            results.append(rows._replace(k=k).run())
    assert (results[0][:, ~valid] == 0).all() and (results[0][:, 60:] == 0).all()
    assert all(torch.equal(each, results[0]) for each in results)


@BACKEND
def test_rows_that_see_no_key_count_for_nothing(backend: str) -> None:
    rows = of_shape((3, 2, 1, 4, 20, 8), torch.float64, masks=(False, False))
    last = torch.tensor([[9, -1, 2, -1], [-1, -1, -1, -1], [19, 30, 1, 5]])
    valid = torch.ones(3, 20) > 0
    valid[0, :4] = False
    valid[2] = False
    q = rows.q.clone()
    q[0, :, 1:] = math.nan
    rows = Rows(q, rows.k, last, valid)
    alone = Rows(q[:1, :, :1], rows.k[:1], last[:1, :1], valid[:1])
    with running(backend):
        got = rows.run()
        torch.testing.assert_close(got[:1], alone.run())
    assert got[0].sum() == pytest.approx(1) and (got[1:] == 0).all()


@BACKEND
@pytest.mark.parametrize("num_rows", [1, 5, 60])
def test_nan_of_a_row_stays_with_the_keys_that_it_sees(backend: str, num_rows: int) -> None:
    rows = of_shape((2, 2, 2, num_rows, 70, 8), masks=(True, True))
    last = torch.full((2, num_rows), 40)
    last[:, -1] = 30
    q = rows.q.clone()
    q[0, 1, -1] = math.nan
    assert rows.valid is not None
    with running(backend):
        got = rows._replace(q=q, last=last).run()
    sees = rows.valid[0] & (torch.arange(70) <= 30)
    assert got[0, sees].isnan().all() and not got[0, ~sees].isnan().any()
    assert (got[0, ~rows.valid[0]] == 0).all() and not got[1].isnan().any()


@BACKEND
def test_a_last_past_the_keys_is_the_last_key(backend: str) -> None:
    rows = of_shape((2, 2, 2, 3, 20, 8), masks=(False, False))
    huge = torch.tensor([[19, 20, 2**63 - 1], [100, 19, 19]])
    with running(backend):
        torch.testing.assert_close(rows._replace(last=huge).run(), rows.run())


@BACKEND
@DTYPES
def test_ids_gather(backend: str, dtype: torch.dtype) -> None:
    rows = of_shape((2, 4, 2, 3, 20, 8), dtype)
    ids = torch.tensor([[3, -1, 19, 3], [0, 5, -1, -1]])
    with running(backend):
        all_keys = rows.run()
        expected = all_keys.gather(1, ids.clamp(min=0)) * (ids >= 0)
        assert torch.equal(rows.run(ids=ids), expected)
        assert rows.run(ids=ids[:, :0]).shape == (2, 0)


@CPU
@DTYPES
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_and_thread_invariant(isa: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    rows = of_shape((3, *shape[1:]), dtype)
    threads = torch.get_num_threads()
    try:
        with running(isa):
            torch.set_num_threads(1)
            one = rows.run()
            torch.set_num_threads(3)
            assert torch.equal(rows.run(), one)
            assert torch.equal(rows.of(slice(2, 3)).run(), one[2:])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("num_rows", [1, 40, 1000])
def test_the_map_is_never_in_memory(num_rows: int) -> None:
    """Its size is that of a decoder's layer; the workspace is a thread's and a block of rows'."""
    if (reason := native.missing_reason("cpu")) is not None:
        pytest.skip(reason)
    rows = of_shape((1, 8, 8, num_rows, 1000, 16), masks=(True, False))
    bytes_of_map = 8 * 1000 * 1000 * 4
    assert peak_bytes(rows.run) < bytes_of_map / 10
    with running("plain"):
        assert peak_bytes(rows.run) < bytes_of_map / 4


def test_bad_input_is_named() -> None:
    q, k, last, valid = of_shape((2, 4, 2, 3, 20, 8))
    assert last is not None and valid is not None
    run = torch.ops.ocvtp.attention_from_rows
    with pytest.raises(ValueError, match="k: expected heads that q's 4 are a multiple of, got"):
        run(q, torch.cat([k, k[:, :1]], 1))
    with pytest.raises(ValueError, match=r"last: expected shape \[B, M\]"):
        run(q, k, last[0])
    with pytest.raises(TypeError, match=r"last: expected dtype torch.int64, got torch.int32"):
        run(q, k, last.int())
    with pytest.raises(ValueError, match="last: expected size 3 in dimension 1 to match q"):
        run(q, k, last[:, 1:])
    with pytest.raises(ValueError, match="valid: expected size 20 in dimension 1 to match k"):
        run(q, k, last, valid[:, 1:])
    with pytest.raises(TypeError, match=r"valid: expected dtype torch.bool, got torch.float32"):
        run(q, k, last, valid.float())
    with pytest.raises(ValueError, match="ids: expected size 2 in dimension 0 to match q"):
        run(q, k, last, valid, last[:1])
    with pytest.raises(ValueError, match="k: expected at least one key"):
        run(q, k[:, :, :0])
