"""Attention received in two passes over tiles of the map, which is never stored.

The first owns queries and keeps two numbers a row of the softmax, the second owns keys and sums
what its keys receive from all queries, block by block in order. Logits count in powers of two: with
``scale * log2 e`` for a factor, exp is one instruction.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.ops.attention_received import QUERY_ROW
from ocvtp_kernels.ops.attention_received.tiles import ReceivedTile, received_tile, rows_tile
from ocvtp_kernels.triton_common.blocks import ceil_div
from ocvtp_kernels.triton_common.launch import dot_precision, launch, unit_stride


@triton.jit
def load_tile(row, live_row, start, depth, DEPTH: tl.constexpr):
    """Channels from ``start`` on of rows ``[R]`` of pointers: ``[R, DEPTH]``, padded with zeros."""
    inner = start + tl.arange(0, DEPTH)
    live = live_row[:, None] & (inner < depth)[None, :]
    return tl.load(row[:, None] + inner[None, :], mask=live, other=0.0)


@triton.jit
def long_dot(
    q_row,
    k_row,
    live_query,
    live_key,
    depth,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``q k^T`` ``[QUERIES, KEYS]`` in steps of DEPTH channels."""
    total = tl.zeros([QUERIES, KEYS], tl.float32)
    for start in range(0, depth, DEPTH):
        q = load_tile(q_row, live_query, start, depth, DEPTH)
        k = load_tile(k_row, live_key, start, depth, DEPTH)
        total = tl.dot(q, tl.trans(k), total, input_precision=PRECISION)
    return total


@triton.jit
def rows_kernel(
    q,
    k,
    rows,
    num_heads,
    num_queries,
    num_keys,
    depth,
    factor,
    q_image_stride,
    q_head_stride,
    q_row_stride,
    k_image_stride,
    k_head_stride,
    k_row_stride,
    WHOLE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each query's largest logit m and 1 / (sum of ``2^(x - m)``): float32 ``[B, H, M, 2]``."""
    blocks = tl.cdiv(num_queries, QUERIES)
    part = tl.program_id(0) // blocks
    image = (part // num_heads).to(tl.int64)
    head = (part % num_heads).to(tl.int64)
    query = (tl.program_id(0) % blocks) * QUERIES + tl.arange(0, QUERIES)
    live_query = query < num_queries
    q_row = q + image * q_image_stride + head * q_head_stride + query.to(tl.int64) * q_row_stride
    k_head = k + image * k_image_stride + head * k_head_stride
    if WHOLE:
        mine = load_tile(q_row, live_query, 0, depth, DEPTH)
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    for first_key in range(0, num_keys, KEYS):
        key = first_key + tl.arange(0, KEYS)
        live_key = key < num_keys
        k_row = k_head + key.to(tl.int64) * k_row_stride
        if WHOLE:
            other = load_tile(k_row, live_key, 0, depth, DEPTH)
            logits = tl.dot(mine, tl.trans(other), input_precision=PRECISION)
        else:
            logits = long_dot(
                q_row, k_row, live_query, live_key, depth, QUERIES, KEYS, DEPTH, PRECISION
            )
        logits = tl.where(live_key[None, :], logits * factor, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, axis=1))
        # Keys of -inf alone weigh nothing yet; a later block may have more.
        pivot = tl.where(new_top == float("-inf"), 0.0, new_top)
        total = total * tl.exp2(top - pivot) + tl.sum(tl.exp2(logits - pivot[:, None]), axis=1)
        top = new_top
    row = rows + (part.to(tl.int64) * num_queries + query) * 2
    tl.store(row, top, mask=live_query)
    tl.store(row + 1, tl.div_rn(tl.full([QUERIES], 1.0, tl.float32), total), mask=live_query)


@triton.jit
def received_kernel(
    q,
    k,
    rows,
    received,
    num_heads,
    num_queries,
    num_keys,
    depth,
    factor,
    q_image_stride,
    q_head_stride,
    q_row_stride,
    k_image_stride,
    k_head_stride,
    k_row_stride,
    WHOLE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What each key receives from a head, the mean over its queries: float32 ``[B, H, N]``."""
    blocks = tl.cdiv(num_keys, KEYS)
    part = tl.program_id(0) // blocks
    image = (part // num_heads).to(tl.int64)
    head = (part % num_heads).to(tl.int64)
    far_part = part.to(tl.int64)
    key = (tl.program_id(0) % blocks) * KEYS + tl.arange(0, KEYS)
    live_key = key < num_keys
    k_row = k + image * k_image_stride + head * k_head_stride + key.to(tl.int64) * k_row_stride
    q_head = q + image * q_image_stride + head * q_head_stride
    if WHOLE:
        mine = load_tile(k_row, live_key, 0, depth, DEPTH)
    # As wide as the logits, so that threads need not exchange sums before the end.
    total = tl.zeros([QUERIES, KEYS], tl.float32)
    for first_query in range(0, num_queries, QUERIES):
        query = first_query + tl.arange(0, QUERIES)
        live_query = query < num_queries
        q_row = q_head + query.to(tl.int64) * q_row_stride
        if WHOLE:
            other = load_tile(q_row, live_query, 0, depth, DEPTH)
            logits = tl.dot(other, tl.trans(mine), input_precision=PRECISION)
        else:
            logits = long_dot(
                q_row, k_row, live_query, live_key, depth, QUERIES, KEYS, DEPTH, PRECISION
            )
        row = rows + (far_part * num_queries + query) * 2
        top = tl.load(row, mask=live_query, other=0.0)
        per_sum = tl.load(row + 1, mask=live_query, other=0.0)
        share = tl.exp2(logits * factor - top[:, None]) * per_sum[:, None]
        # Zeros that pad the queries meet a key's infinity as NaN.
        total += tl.where(live_query[:, None], share, 0.0)
    mean = tl.div_rn(tl.sum(total, axis=0), tl.full([KEYS], 1.0, tl.float32) * num_queries)
    tl.store(received + far_part * num_keys + key, mean, mask=live_key)


def attention_received(q: Tensor, k: Tensor, mode: str, scale: float | None = None) -> Tensor:
    """`ocvtp_kernels.ops.attention_received.reference.attention_received` without an ``[M, N]`` map in memory.

    Args:
        q: ``[B, H, M, d]`` and k: ``[B, H, N, d]`` with any strides; copied only where neighbours
            of the last dimension are not adjacent.

    Returns:
        float32 ``[B, N]``.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if mode in QUERY_ROW:
        row = QUERY_ROW[mode] % q.shape[2]
        q = q[:, :, row : row + 1]
    q, k = unit_stride(q), unit_stride(k)
    batch, num_heads, num_queries, depth = q.shape
    num_keys = k.shape[2]
    rows = torch.empty((batch, num_heads, num_queries, 2), dtype=torch.float32, device=q.device)
    received = torch.empty((batch, num_heads, num_keys), dtype=torch.float32, device=q.device)
    tile = rows_tile(q.dtype, num_queries, depth)
    launch(
        rows_kernel,
        (batch * num_heads * ceil_div(num_queries, tile.queries),),
        {**_arguments(q, k, scale, tile), "rows": rows},
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    tile = received_tile(q.dtype, num_queries, depth)
    launch(
        received_kernel,
        (batch * num_heads * ceil_div(num_keys, tile.keys),),
        {**_arguments(q, k, scale, tile), "rows": rows, "received": received},
        num_warps=tile.warps,
        num_stages=tile.stages,
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
        "WHOLE": tile.whole,
        "QUERIES": tile.queries,
        "KEYS": tile.keys,
        "DEPTH": tile.depth,
        "PRECISION": dot_precision(q.dtype),
    }
