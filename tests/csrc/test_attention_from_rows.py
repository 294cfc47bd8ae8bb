"""attention_from_rows on the CPU, against its formula."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from tests.csrc.shapes import (
    ISAS,
    QUERY_BLOCK,
    Array,
    Case,
    Divide,
    ceil_div,
    fuzz,
    half_bits,
    module,
    of_half_bits,
    token_blocks,
)

pytestmark = pytest.mark.usefixtures("kernels")


@fuzz
def test_attention_from_rows(case: Case) -> None:
    batch, heads = case.between(1, 2), case.between(1, 3)
    # Keys are packed for more than eight queries.
    queries, keys = case.between(1, 8) if case.chance(30) else case.size(140), case.size(140)
    width = case.size(40) if case.chance(90) else case.between(200, 700)
    scale = case.normal() * (10 if case.chance(20) else 0.5)
    # [B, M, H, d] seen as [B, H, M, d], rows `gap` apart.
    gap = case.between(0, 2)
    row = width + gap
    across = heads * row
    q, k = (case.numbers(batch * rows * across - gap) for rows in (queries, keys))
    kind, isas = case.dtype.name, ISAS
    if kind == "float32" and case.chance(60):
        kind = "float16" if case.chance(50) else "bfloat16"
        q, k = (case.exact(half_bits(x, kind), np.uint16) for x in (q, k))
        isas = (*ISAS, "avx512_bf16") if kind == "bfloat16" else ISAS
    kernel = getattr(module(), kind).attention_from_rows
    parts = heads * ceil_div(queries, QUERY_BLOCK)
    sees = np.ones((batch, queries, keys), bool)
    last = valid = None
    if case.chance(60):
        lasts = case.random.integers(-1, keys + 2, (batch, queries))
        sees &= np.arange(keys) <= lasts[:, :, None]
        if case.chance(60):
            valid = case.exact(case.random.random((batch, keys)) < 0.7, np.bool_)
            sees &= valid[:, None]
            lasts[~sees.any(-1)] = -1
        last = case.exact(lasts, np.int64)
    seen = last, valid

    def of_heads(x: Array, rows: int) -> Array:
        x = x if x.dtype == case.dtype else of_half_bits(x, kind)
        steps = [x.itemsize * step for step in (rows * across, row, across, 1)]
        return as_strided(x, (batch, heads, rows, width), steps).astype(np.float64)

    def body(divide: Divide) -> list[Array]:
        received = case.unwritten(batch, parts, keys)

        def part(begin: int, end: int) -> None:
            scratch = case.unwritten(module().attention_scratch(queries, keys, width))
            strides = (queries * across, row, across, keys * across, row, across)
            sizes = (heads, queries, keys, width, scale)
            kernel((q, k, seen, *strides, *sizes, scratch, received), begin, end)

        divide(part)
        return [received]

    # Its logits fill the registers, so that sets of instructions sum in orders of their own.
    for (received,) in case.results(batch * parts, body, agree=False, isas=isas):
        made = [case.unwritten(batch, keys)]
        for (mean,) in case.run(
            "attention_mean",
            batch * token_blocks(keys),
            made,
            lambda mean, received=received: (received, seen, parts, keys, heads, queries, mean),
        ):
            if case.spoilt:
                continue
            q_rows = of_heads(q, queries)
            k_rows = of_heads(k, keys) * float(case.rounded(scale))
            logits = np.einsum("bhmd,bhnd->bhmn", q_rows, k_rows)
            sizes = np.einsum("bhmd,bhnd->bhmn", np.abs(q_rows), np.abs(k_rows))
            size = np.maximum(8, sizes.max((1, 2, 3)))[:, None]
            logits = np.where(sees[:, None], logits, -np.inf)
            weights = np.exp(logits - logits.max(-1, keepdims=True, initial=-1e300))
            weights /= np.maximum(1e-300, weights.sum(-1, keepdims=True))
            counted = np.maximum(1, sees.any(-1).sum(-1))[:, None]
            want = weights.sum((1, 2)) / (heads * counted)
            case.assert_near(mean, want, 16 * case.eps * size * want + 8 * case.tiny)
