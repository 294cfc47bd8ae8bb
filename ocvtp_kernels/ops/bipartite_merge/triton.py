"""Bipartite soft matching and merging in one launch: a program an image and block of channels.

Every program matches its whole image, which needs no other program, and merges its own channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.dtypes import acc_dtype
from ocvtp_kernels.ops.bipartite_merge import first_places, side_tokens
from ocvtp_kernels.triton_common.blocks import ceil_div, power_of_two
from ocvtp_kernels.triton_common.greedy import nan_last
from ocvtp_kernels.triton_common.launch import launch, unit_stride
from ocvtp_kernels.triton_common.packed_argmax import pack_argmax, unpack_score, unpack_token


@triton.jit
def products_tile(a_row, b_row, masks, depth, BLOCK_K: tl.constexpr):
    """Keys of A times keys of B divided by their norms, and the norms of those of A.

    Args:
        a_row, b_row: pointers to the rows of the keys; masks: which of them there are.
    """
    mask_a, mask_b = masks
    product = tl.zeros([a_row.shape[0], b_row.shape[0]], tl.float32)
    a_square = tl.zeros([a_row.shape[0]], tl.float32)
    b_square = tl.zeros([b_row.shape[0]], tl.float32)
    for start in range(0, depth, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K)
        mask_k = (offs_k < depth)[None, :]
        a = tl.load(a_row[:, None] + offs_k[None, :], mask=mask_a[:, None] & mask_k, other=0.0)
        b = tl.load(b_row[:, None] + offs_k[None, :], mask=mask_b[:, None] & mask_k, other=0.0)
        a_wide, b_wide = a.to(tl.float32), b.to(tl.float32)
        a_square += tl.sum(a_wide * a_wide, axis=1)
        b_square += tl.sum(b_wide * b_wide, axis=1)
        product = tl.dot(a, tl.trans(b), product, input_precision="ieee")
    b_norm = tl.maximum(tl.sqrt_rn(b_square), 1e-12)
    return product / b_norm[None, :], tl.maximum(tl.sqrt_rn(a_square), 1e-12)


@triton.jit
def match(
    keys, scores, targets,
    sides, depth, num_merged,
    row_stride,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Writes the target of each token of A that merges, -1 of the others.

    ``scores`` are packed with their places in A. All differ, so a token's rank is the number of
    larger ones.
    """
    first_a, first_b, num_a, num_b = sides
    for first in range(0, num_a, BLOCK_A):
        a = first + tl.arange(0, BLOCK_A)
        mask_a = a < num_a
        a_row = keys + (first_a + 2 * a).to(tl.int64) * row_stride
        best = tl.full([BLOCK_A], -1, tl.int64)
        norm = tl.full([BLOCK_A], 1.0, tl.float32)
        for first_other in range(0, num_b, BLOCK_B):
            b = first_other + tl.arange(0, BLOCK_B)
            mask_b = b < num_b
            b_row = keys + (first_b + 2 * b).to(tl.int64) * row_stride
            product, norm = products_tile(a_row, b_row, (mask_a, mask_b), depth, BLOCK_K)
            packed = pack_argmax(product, b[None, :])
            best = tl.maximum(best, tl.max(tl.where(mask_b[None, :], packed, -1), axis=1))
        score = nan_last(unpack_score(best) / norm)
        # The largest product is infinite where a key is.
        target = tl.where(score == float("-inf"), 0, unpack_token(best))
        tl.store(scores + a, pack_argmax(score, a), mask=mask_a)
        tl.store(targets + a, target.to(tl.int32), mask=mask_a)
    tl.debug_barrier()
    for first in range(0, num_a, BLOCK_A):
        a = first + tl.arange(0, BLOCK_A)
        mask_a = a < num_a
        own = tl.load(scores + a, mask=mask_a, other=0)
        rank = tl.zeros([BLOCK_A], tl.int32)
        for first_other in range(0, num_a, BLOCK_B):
            other = first_other + tl.arange(0, BLOCK_B)
            other_score = tl.load(scores + other, mask=other < num_a, other=-1)
            rank += tl.sum((other_score[None, :] > own[:, None]).to(tl.int32), axis=1)
        tl.store(targets + a, -1, mask=mask_a & (rank >= num_merged))
    tl.debug_barrier()


@triton.jit
def row_of(token, before, first_a):
    """The row of a token that is left; ``before`` counts those merged before a token of A."""
    return token - tl.load(before + tl.maximum(token - first_a + 1, 0) // 2)


@triton.jit(do_not_specialize=["num_merged", "num_prefix"])
def bipartite_merge_kernel(
    tokens, keys, sizes, scores, targets, before, merged, merged_sizes, assignment,
    num_tokens, width, depth, num_merged, num_prefix,
    token_image_stride, token_row_stride, key_image_stride, key_row_stride, sizes_stride,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_SIDE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Merged ``[B, N - r, C]``, their sizes float32 and the assignment int64.

    A program has its own ``scores`` int64 and ``targets`` int32 of the tokens of A, and
    ``before`` int32, one more.
    """
    blocks = tl.maximum(tl.cdiv(width, BLOCK_COLUMNS), 1)
    program = tl.program_id(0).to(tl.int64)
    image, block = program // blocks, program % blocks
    first_a, first_b = num_prefix + num_prefix % 2, num_prefix + 1 - num_prefix % 2
    num_a = tl.maximum(num_tokens - first_a + 1, 0) // 2
    num_b = tl.maximum(num_tokens - first_b + 1, 0) // 2
    column = block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask_column = column < width
    tokens += image * token_image_stride + column
    sizes += image * sizes_stride
    scores += program * num_a
    targets += program * num_a
    before += program * (num_a + 1)
    merged += image * (num_tokens - num_merged) * width + column
    merged_sizes += image * (num_tokens - num_merged)
    match(
        keys + image * key_image_stride, scores, targets,
        (first_a, first_b, num_a, num_b), depth, num_merged, key_row_stride,
        BLOCK_A, BLOCK_B, BLOCK_K,
    )  # fmt: skip
    a = tl.arange(0, BLOCK_SIDE)
    target = tl.load(targets + a, mask=a < num_a, other=-1)
    is_merged = (target >= 0).to(tl.int32)
    tl.store(before + a, tl.cumsum(is_merged, axis=0) - is_merged, mask=a <= num_a)
    tl.debug_barrier()

    for first in range(0, num_tokens, BLOCK_ROWS):
        token = first + tl.arange(0, BLOCK_ROWS)
        mask_token = token < num_tokens
        # Masked places have the row of the last token.
        row = row_of(tl.minimum(token, num_tokens - 1), before, first_a)
        is_a = mask_token & (token >= first_a) & ((token - first_a) % 2 == 0)
        into = tl.load(targets + (token - first_a) // 2, mask=is_a, other=-1)
        is_left = mask_token & (into < 0)
        mask = is_left[:, None] & mask_column[None, :]
        value = tl.load(tokens + token.to(tl.int64)[:, None] * token_row_stride, mask=mask)
        tl.store(merged + row.to(tl.int64)[:, None] * width, value, mask=mask)
        if block == 0:
            size = tl.load(sizes + token, mask=is_left, other=0.0)
            tl.store(merged_sizes + row, size.to(tl.float32), mask=is_left)
            into_row = row_of(tl.maximum(first_b + 2 * into, 0), before, first_a)
            assigned = tl.where(into < 0, row, into_row).to(tl.int64)
            tl.store(assignment + image * num_tokens + token, assigned, mask=mask_token)
    tl.debug_barrier()

    # The groups again, now with what merges into them.
    into = tl.where(target >= 0, target, num_b)
    group = tl.min(into)
    while group < num_b:
        token = first_b + 2 * group
        waiting = tl.where(into == group, a, num_a)
        source = tl.min(waiting)
        part_size = tl.load(sizes + token).to(tl.float32)
        value = tl.load(tokens + token.to(tl.int64) * token_row_stride, mask=mask_column, other=0.0)
        part = part_size * value.to(tl.float32)
        total = tl.zeros([BLOCK_COLUMNS], tl.float32)
        total_size = 0.0
        count = 1
        while source < num_a:
            place = first_a + 2 * source
            size = tl.load(sizes + place).to(tl.float32)
            value = tl.load(
                tokens + place.to(tl.int64) * token_row_stride, mask=mask_column, other=0.0
            )
            part += size * value.to(tl.float32)
            part_size += size
            count += 1
            # Sums of sixteen are added up: one long sum would round small terms away.
            full = count % 16 == 0
            total += tl.where(full, part, 0.0)
            part = tl.where(full, 0.0, part)
            total_size += tl.where(full, part_size, 0.0)
            part_size = tl.where(full, 0.0, part_size)
            source = tl.min(tl.where(waiting > source, waiting, num_a))
        total_size += part_size
        row = row_of(token, before, first_a)
        mean = (total + part) / total_size
        tl.store(
            merged + row.to(tl.int64) * width, mean.to(merged.dtype.element_ty), mask=mask_column
        )
        if block == 0:
            tl.store(merged_sizes + row, total_size)
        group = tl.min(tl.where(into > group, into, num_b))


class BipartiteTile(NamedTuple):
    """Keys multiplied at once, all tokens of A, and the rows and channels copied at once."""

    block_a: int
    block_b: int
    block_k: int
    block_side: int
    block_rows: int
    block_columns: int
    num_warps: int


def bipartite_tile(dtype: torch.dtype, depth: int, num_a: int, width: int) -> BipartiteTile:
    """The tile for keys of ``dtype``: the same for every batch."""
    block_k = min(power_of_two(max(depth, 1)), 16 if dtype == torch.float32 else 64)
    block_side = power_of_two(num_a + 1, 128)
    return BipartiteTile(64, 64, block_k, block_side, 16, min(power_of_two(max(width, 1)), 256), 8)


def bipartite_merge(
    tokens: Tensor, keys: Tensor, sizes: Tensor, num_merged: int, num_prefix: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """`ocvtp::bipartite_merge` in one launch."""
    tokens, keys, sizes = (unit_stride(t) for t in (tokens, keys, sizes))
    batch, num_tokens, width = tokens.shape
    depth = keys.shape[2]
    num_a = side_tokens(num_tokens, first_places(num_prefix)[0])
    tile = bipartite_tile(keys.dtype, depth, num_a, width)
    programs = batch * max(ceil_div(width, tile.block_columns), 1)
    merged = tokens.new_empty((batch, num_tokens - num_merged, width))
    merged_sizes = sizes.new_empty(merged.shape[:2], dtype=acc_dtype(sizes.dtype))
    assignment = tokens.new_empty((batch, num_tokens), dtype=torch.int64)
    launch(
        bipartite_merge_kernel,
        (programs,),
        {
            "tokens": tokens,
            "keys": keys,
            "sizes": sizes,
            "scores": assignment.new_empty((programs, num_a)),
            "targets": assignment.new_empty((programs, num_a), dtype=torch.int32),
            "before": assignment.new_empty((programs, num_a + 1), dtype=torch.int32),
            "merged": merged,
            "merged_sizes": merged_sizes,
            "assignment": assignment,
            "num_tokens": num_tokens,
            "width": width,
            "depth": depth,
            "num_merged": num_merged,
            "num_prefix": num_prefix,
            "token_image_stride": tokens.stride(0),
            "token_row_stride": tokens.stride(1),
            "key_image_stride": keys.stride(0),
            "key_row_stride": keys.stride(1),
            "sizes_stride": sizes.stride(0),
            "BLOCK_A": tile.block_a,
            "BLOCK_B": tile.block_b,
            "BLOCK_K": tile.block_k,
            "BLOCK_SIDE": tile.block_side,
            "BLOCK_ROWS": tile.block_rows,
            "BLOCK_COLUMNS": tile.block_columns,
        },
        num_warps=tile.num_warps,
    )
    return merged, merged_sizes, assignment
