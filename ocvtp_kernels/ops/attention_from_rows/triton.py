"""Attention received in two passes over tiles of the attention, which is never stored.

In the first pass a program takes a block of queries and stores each one's softmax statistics; in
the second it takes a block of keys and sums their attention over all queries, block by block in
order. Tiles that no query of the block sees a key of are left out. Logits are in powers of two
(``scale * log2 e`` is the factor), so exp is one instruction.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.ops.attention_from_rows import num_counted, of_folded_rows
from ocvtp_kernels.ops.attention_from_rows.tiles import (
    ReceivedTile,
    query_stats_tile,
    received_tile,
)
from ocvtp_kernels.triton_common.blocks import ceil_div
from ocvtp_kernels.triton_common.launch import dot_precision, launch, unit_stride


@triton.jit
def load_tile(row, mask_row, start, depth, BLOCK_K: tl.constexpr):
    """``[R, BLOCK_K]`` channels from ``start`` of rows at pointers ``[R]``, zero in the padding."""
    channel = start + tl.arange(0, BLOCK_K)
    mask = mask_row[:, None] & (channel < depth)[None, :]
    return tl.load(row[:, None] + channel[None, :], mask=mask, other=0.0)


@triton.jit
def dot_in_blocks(rows, masks, depth, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr):
    """``q k^T`` ``[BLOCK_QUERIES, BLOCK_KEYS]`` in steps of BLOCK_K channels."""
    q_row, k_row = rows
    mask_query, mask_key = masks
    total = tl.zeros([q_row.shape[0], k_row.shape[0]], tl.float32)
    for start in range(0, depth, BLOCK_K):
        q = load_tile(q_row, mask_query, start, depth, BLOCK_K)
        k = load_tile(k_row, mask_key, start, depth, BLOCK_K)
        total = tl.dot(q, tl.trans(k), total, input_precision=PRECISION)
    return total


@triton.jit
def query_stats_kernel(
    q, k, last, valid, softmax_stats,
    num_heads, num_queries, num_keys, depth, factor,
    q_image_stride, q_head_stride, q_row_stride, k_image_stride, k_head_stride, k_row_stride,
    LAST: tl.constexpr, VALID: tl.constexpr, SINGLE_BLOCK: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Each query's largest logit m and 1 / (sum of ``2^(x - m)``): float32 ``[B, H, M, 2]``.

    Of the keys that it sees: valid ones (read if VALID) up to its last (read if LAST).
    """
    num_blocks = tl.cdiv(num_queries, BLOCK_QUERIES)
    head_index = tl.program_id(0) // num_blocks
    image = (head_index // num_heads).to(tl.int64)
    head = (head_index % num_heads).to(tl.int64)
    query = (tl.program_id(0) % num_blocks) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    mask_query = query < num_queries
    q_row = q + image * q_image_stride + head * q_head_stride + query.to(tl.int64) * q_row_stride
    k_head = k + image * k_image_stride + head * k_head_stride
    if SINGLE_BLOCK:
        own = load_tile(q_row, mask_query, 0, depth, BLOCK_K)
    row_max = tl.full([BLOCK_QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_QUERIES], tl.float32)
    num_seen = num_keys
    if LAST:
        last_key = tl.load(last + image * num_queries + query, mask=mask_query, other=-1)
        num_seen = tl.minimum(tl.max(last_key) + 1, num_keys).to(tl.int32)
    for first_key in range(0, num_seen, BLOCK_KEYS):
        key = first_key + tl.arange(0, BLOCK_KEYS)
        mask_key = key < num_keys
        if VALID:
            mask_key &= tl.load(valid + image * num_keys + key, mask=mask_key, other=0) != 0
        k_row = k_head + key.to(tl.int64) * k_row_stride
        if SINGLE_BLOCK:
            other = load_tile(k_row, mask_key, 0, depth, BLOCK_K)
            logits = tl.dot(own, tl.trans(other), input_precision=PRECISION)
        else:
            rows, masks = (q_row, k_row), (mask_query, mask_key)
            logits = dot_in_blocks(rows, masks, depth, BLOCK_K, PRECISION)
        sees = mask_key[None, :]
        if LAST:
            sees &= key[None, :] <= last_key[:, None]
        logits = tl.where(sees, logits * factor, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(logits, axis=1))
        # While all logits are -inf the shift is 0, so that no exp2 is NaN.
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        total = total * tl.exp2(row_max - shift) + tl.sum(tl.exp2(logits - shift[:, None]), axis=1)
        row_max = new_max
    row = softmax_stats + (head_index.to(tl.int64) * num_queries + query) * 2
    tl.store(row, row_max, mask=mask_query)
    tl.store(row + 1, tl.div_rn(tl.full([BLOCK_QUERIES], 1.0, tl.float32), total), mask=mask_query)


@triton.jit
def received_kernel(
    q, k, last, valid, counted, softmax_stats, received,
    num_heads, num_queries, num_keys, depth, factor,
    q_image_stride, q_head_stride, q_row_stride, k_image_stride, k_head_stride, k_row_stride,
    LAST: tl.constexpr, VALID: tl.constexpr, SINGLE_BLOCK: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What each key receives from a head, the mean over its queries: float32 ``[B, H, N]``.

    If LAST, over those that count: int64 ``[B]``.
    """
    num_blocks = tl.cdiv(num_keys, BLOCK_KEYS)
    head_index = tl.program_id(0) // num_blocks
    image = (head_index // num_heads).to(tl.int64)
    head = (head_index % num_heads).to(tl.int64)
    offs_head = head_index.to(tl.int64)
    first_key = (tl.program_id(0) % num_blocks) * BLOCK_KEYS
    key = first_key + tl.arange(0, BLOCK_KEYS)
    mask_key = key < num_keys
    if VALID:
        mask_valid = tl.load(valid + image * num_keys + key, mask=mask_key, other=0) != 0
    k_row = k + image * k_image_stride + head * k_head_stride + key.to(tl.int64) * k_row_stride
    q_head = q + image * q_image_stride + head * q_head_stride
    if SINGLE_BLOCK:
        own = load_tile(k_row, mask_key, 0, depth, BLOCK_K)
    # As wide as the logits, so that threads exchange sums only at the end.
    total = tl.zeros([BLOCK_QUERIES, BLOCK_KEYS], tl.float32)
    for first_query in range(0, num_queries, BLOCK_QUERIES):
        query = first_query + tl.arange(0, BLOCK_QUERIES)
        mask_query = query < num_queries
        # Padding queries are 0, and 0 times a key's infinity is NaN.
        sees = mask_query[:, None]
        is_seen = True
        if LAST:
            last_key = tl.load(last + image * num_queries + query, mask=mask_query, other=-1)
            is_seen = tl.max(last_key) >= first_key
            sees = key[None, :] <= last_key[:, None]
        if is_seen:
            q_row = q_head + query.to(tl.int64) * q_row_stride
            if SINGLE_BLOCK:
                other = load_tile(q_row, mask_query, 0, depth, BLOCK_K)
                logits = tl.dot(other, tl.trans(own), input_precision=PRECISION)
            else:
                rows, masks = (q_row, k_row), (mask_query, mask_key)
                logits = dot_in_blocks(rows, masks, depth, BLOCK_K, PRECISION)
            row = softmax_stats + (offs_head * num_queries + query) * 2
            row_max = tl.load(row, mask=mask_query, other=0.0)
            inv_sum = tl.load(row + 1, mask=mask_query, other=0.0)
            attention = tl.exp2(logits * factor - row_max[:, None]) * inv_sum[:, None]
            total += tl.where(sees, attention, 0.0)
    rows = tl.full([BLOCK_KEYS], 1.0, tl.float32) * num_queries
    if LAST:
        rows = tl.full([BLOCK_KEYS], 1.0, tl.float32) * tl.load(counted + image)
    mean = tl.div_rn(tl.sum(total, axis=0), rows)
    if VALID:
        mean = tl.where(mask_valid, mean, 0.0)
    tl.store(received + offs_head * num_keys + key, mean, mask=mask_key)


@of_folded_rows
def attention_from_rows(
    q: Tensor, k: Tensor, last: Tensor | None, valid: Tensor | None, scale: float
) -> Tensor:
    """`ocvtp::attention_from_rows` in two launches, without an ``[R, L]`` attention in memory.

    Strides of q and k are free; a copy is made only where the last dimension is not contiguous.
    """
    q, k = unit_stride(q), unit_stride(k)
    batch, num_heads, num_queries, depth = q.shape
    num_keys = k.shape[2]
    counted = num_counted(q, last)
    masks = {
        "last": q if last is None else last.contiguous(),
        "valid": q if valid is None else valid.contiguous().view(torch.uint8),
        "LAST": last is not None,
        "VALID": valid is not None,
    }
    softmax_stats = torch.empty(
        (batch, num_heads, num_queries, 2), dtype=torch.float32, device=q.device
    )
    received = torch.empty((batch, num_heads, num_keys), dtype=torch.float32, device=q.device)
    tile = query_stats_tile(q.dtype, num_queries, depth)
    launch(
        query_stats_kernel,
        (batch * num_heads * ceil_div(num_queries, tile.block_queries),),
        {**_arguments(q, k, scale, tile), **masks, "softmax_stats": softmax_stats},
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    tile = received_tile(q.dtype, num_queries, depth)
    launch(
        received_kernel,
        (batch * num_heads * ceil_div(num_keys, tile.block_keys),),
        {
            **_arguments(q, k, scale, tile),
            **masks,
            "counted": q if isinstance(counted, int) else counted,
            "softmax_stats": softmax_stats,
            "received": received,
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return received.mean(dim=1)


def _arguments(q: Tensor, k: Tensor, scale: float, tile: ReceivedTile) -> dict[str, Any]:
    """The arguments of both kernels."""
    return {
        "q": q,
        "k": k,
        "num_heads": q.shape[1],
        "num_queries": q.shape[2],
        "num_keys": k.shape[2],
        "depth": q.shape[3],
        "factor": scale * math.log2(math.e),
        "q_image_stride": q.stride(0),
        "q_head_stride": q.stride(1),
        "q_row_stride": q.stride(2),
        "k_image_stride": k.stride(0),
        "k_head_stride": k.stride(1),
        "k_row_stride": k.stride(2),
        "SINGLE_BLOCK": tile.single_block,
        "BLOCK_QUERIES": tile.block_queries,
        "BLOCK_KEYS": tile.block_keys,
        "BLOCK_K": tile.block_k,
        "PRECISION": dot_precision(q.dtype),
    }
