"""VLM-Pruner's centrifugal expansion, one program an image and all passes in one launch.

A pass ranks all tokens once, so a chunk is an interval of ranks. A chunk with no token below the
threshold changes neither the state nor any redundancy, so it is skipped: the pass goes straight to
the chunk of the lowest rank that is below the threshold.
"""

from __future__ import annotations

import math
import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.triton_common.greedy import load_row, nan_last, times
from ocvtp_kernels.triton_common.greedy_tiles import expansion_tile
from ocvtp_kernels.triton_common.launch import launch, unit_stride
from ocvtp_kernels.triton_common.packed_argmax import pack_argmax


@triton.jit
def select_token(state, pick, num_selected, matrix, assignment, token, mask, width):
    """The state (best, nearest) after ``pick`` int32 is selected as number ``num_selected``."""
    best, nearest = state
    similarity, row_stride = matrix
    row = nan_last(load_row(similarity, pick.to(tl.int64), row_stride, token, mask, 0.0))
    closer = row > best
    # The assignment is read only at the end, so it stays in memory, not in registers.
    tl.store(
        assignment + token, tl.zeros_like(token).to(tl.int64) + num_selected, mask=mask & closer
    )
    down = token // width - pick // width
    across = token % width - pick % width
    return tl.where(closer, row, best), tl.minimum(nearest, down * down + across * across)


@triton.jit
def redundancy_of(best, nearest, spread, diameter):
    """``max_s similarity_js * (1 + spread * distance_j)``, rounded as the reference rounds it."""
    distance = tl.div_rn(tl.sqrt_rn(nearest.to(tl.float32)), tl.zeros_like(best) + diameter)
    return times(best, 1.0 + times(distance, spread))


@triton.jit
def rank_keys(
    best, redundancy, packed_scores, token, mask, free,
    num_tokens,
    BLOCK_TOKENS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Each free token's rank among the free, least redundant first, times BLOCK_TOKENS plus its id.

    NaN tokens come last; tokens that are not free get BLOCK_TOKENS squared. ``packed_scores`` is
    scratch.
    """
    # An id alone is below every packed score, that of -inf included.
    score = tl.where(best == best, pack_argmax(1.0 - redundancy, token), 2147483647 - token)
    own_score = tl.where(free, score, -1)
    tl.debug_barrier()
    tl.store(packed_scores + token, own_score, mask=mask)
    tl.debug_barrier()
    rank = tl.zeros(token.shape, tl.int32)
    for first in range(0, num_tokens, UNROLL):
        for ahead in tl.static_range(UNROLL):
            other = tl.cast(first + ahead, tl.int32)
            other_score = tl.load(packed_scores + other, mask=other < num_tokens, other=-1)
            rank += (other_score > own_score).to(tl.int32)
    return tl.where(free, rank * BLOCK_TOKENS + token, BLOCK_TOKENS * BLOCK_TOKENS)


@triton.jit
def as_double(bits):
    """The float64 with these int64 bits."""
    return tl.cast(bits, tl.int64).to(tl.float64, bitcast=True)


@triton.jit(do_not_specialize=["num_pivots", "budget", "threshold", "step", "chunk"])
def centrifugal_kernel(
    similarity, pivots, packed_scores, order, counts, assignment, max_similarity,
    num_tokens, num_pivots, width, budget, spread, diameter, threshold, step, chunk,
    image_stride, row_stride, pivot_stride,
    PAD: tl.constexpr, BLOCK_TOKENS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Order int64 ``[B, T]``, counts int64 ``[B]``, assignment int64 ``[B, N]``, max_similarity.

    ``threshold`` and ``step`` are the bits of doubles, which Triton would pass as float32: their
    sums are rounded only where they are compared. ``packed_scores`` is scratch, int64 ``[B, N]``. A
    token is selected if it is at distance 0 of a selected one: no two tokens share a cell.
    """
    NO_KEY: tl.constexpr = BLOCK_TOKENS * BLOCK_TOKENS  # above all of `rank_keys`
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK_TOKENS)
    mask = token < num_tokens
    similarity += image * image_stride
    pivots += image * pivot_stride
    packed_scores += image * num_tokens
    order += image * budget
    assignment += image * num_tokens
    max_similarity += image * num_tokens
    tl.store(assignment + token, tl.zeros([BLOCK_TOKENS], tl.int64), mask=mask)
    tl.debug_barrier()
    own = load_row(similarity, token.to(tl.int64), row_stride, token, mask, 0.0)
    # A NaN token stays NaN: no comparison with it holds, so it is never below a threshold.
    best = tl.where(own == own, float("-inf"), own)
    nearest = tl.full([BLOCK_TOKENS], 2147483647, tl.int32)
    matrix = (similarity, row_stride)
    num_selected = 0
    while num_selected < num_pivots:
        pick = tl.load(pivots + num_selected).to(tl.int32)
        tl.store(order + num_selected, pick.to(tl.int64))
        state = (best, nearest)
        best, nearest = select_token(
            state, pick, num_selected, matrix, assignment, token, mask, width
        )
        num_selected += 1

    limit = as_double(threshold)
    num_unpadded = num_selected
    padding = 0
    before = -1
    while (before < num_selected) & (num_selected < budget):
        before = num_selected
        redundancy = redundancy_of(best, nearest, spread, diameter)
        free = mask & (nearest > 0)
        rank_key = rank_keys(
            best, redundancy, packed_scores, token, mask, free, num_tokens, BLOCK_TOKENS, UNROLL
        )
        # Padding is one more pass, of one chunk, that takes any token.
        stride = tl.where(padding == 1, BLOCK_TOKENS, chunk)
        start = 0
        in_pass = 1
        while in_pass == 1:
            redundancy = redundancy_of(best, nearest, spread, diameter)
            accepted = (redundancy < limit.to(tl.float32)) | (padding == 1)
            waiting = tl.where(accepted & (rank_key >= start * BLOCK_TOKENS), rank_key, NO_KEY)
            lowest = tl.min(waiting) // BLOCK_TOKENS
            # The first chunk's tokens were the least redundant: without one of them the pass ends.
            in_pass = ((lowest < BLOCK_TOKENS) & ((num_selected > before) | (lowest < stride))).to(
                tl.int32
            )
            start = tl.where(in_pass == 1, lowest - lowest % stride + stride, 0)
            waiting = tl.where(waiting < start * BLOCK_TOKENS, waiting, NO_KEY)
            num_waiting = tl.sum((waiting < NO_KEY).to(tl.int32))
            room = budget - num_selected
            while (num_waiting > room) & (padding == 0):
                score = tl.where(waiting < NO_KEY, 1.0 - redundancy, float("inf"))
                worst = (score == tl.min(score)) & (waiting < NO_KEY)
                dropped = tl.max(tl.where(worst, waiting, -1))
                waiting = tl.where(waiting == dropped, NO_KEY, waiting)
                num_waiting -= 1
            last = num_selected + tl.minimum(num_waiting, room)
            while num_selected < last:
                # The key has rank and id: one minimum finds both.
                lowest = tl.min(waiting)
                waiting = tl.where(waiting == lowest, NO_KEY, waiting)
                pick = lowest % BLOCK_TOKENS
                tl.store(order + num_selected, pick.to(tl.int64))
                state = (best, nearest)
                best, nearest = select_token(
                    state, pick, num_selected, matrix, assignment, token, mask, width
                )
                num_selected += 1
            in_pass = in_pass * (num_selected < budget).to(tl.int32)
        limit += as_double(step)
        num_unpadded = tl.where(padding == 1, num_unpadded, num_selected)
        if PAD:
            short = (num_selected == before) & (padding == 0)
            padding = tl.where(short, 1, padding)
            before = tl.where(short, -1, before)

    tl.store(counts + image, tl.cast(num_unpadded, tl.int64))
    nothing = tl.full([BLOCK_TOKENS], -1, tl.int64)
    tl.store(order + token, nothing, mask=(token >= num_selected) & (token < budget))
    tl.debug_barrier()
    is_assigned = (nearest > 0) & (best == best)
    tl.store(assignment + token, nothing, mask=mask & ~is_assigned)
    tl.store(max_similarity + token, tl.where(is_assigned, best, 0.0), mask=mask)


def centrifugal_select(
    similarity: Tensor,
    pivots: Tensor,
    height: int,
    width: int,
    budget: int,
    spread: float = 0.5,
    threshold: float = 0.8,
    step: float = 0.1,
    chunk: int = 16,
    pad: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`ocvtp::centrifugal_select` in one launch."""
    similarity, pivots = unit_stride(similarity), unit_stride(pivots)
    batch, num_tokens, _ = similarity.shape
    order = torch.empty((batch, budget), dtype=torch.int64, device=similarity.device)
    counts, assignment = order.new_empty((batch,)), order.new_empty((batch, num_tokens))
    max_similarity = similarity.new_empty((batch, num_tokens), dtype=torch.float32)
    tile = expansion_tile(num_tokens)
    launch(
        centrifugal_kernel,
        (batch,),
        {
            "similarity": similarity,
            "pivots": pivots,
            "packed_scores": order.new_empty((batch, num_tokens)),
            "order": order,
            "counts": counts,
            "assignment": assignment,
            "max_similarity": max_similarity,
            "num_tokens": num_tokens,
            "num_pivots": min(pivots.shape[1], budget),
            "width": width,
            "budget": budget,
            "spread": float(spread),
            "diameter": math.hypot(height, width),
            "threshold": _bits(threshold),
            "step": _bits(step),
            "chunk": min(chunk, num_tokens),
            "image_stride": similarity.stride(0),
            "row_stride": similarity.stride(1),
            "pivot_stride": pivots.stride(0),
            "PAD": pad,
            "BLOCK_TOKENS": tile.block_tokens,
            "UNROLL": tile.unroll,
        },
        num_warps=tile.num_warps,
    )
    return order, counts, assignment, max_similarity


def _bits(num_waiting: float) -> int:
    """The bits of a float64 as an integer."""
    bits: int = struct.unpack("<q", struct.pack("<d", num_waiting))[0]
    return bits
