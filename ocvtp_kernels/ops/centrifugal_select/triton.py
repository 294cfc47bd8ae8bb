"""VLM-Pruner's centrifugal expansion, one program an image and all passes in one launch.

Every token knows its rank in a pass, so a chunk is an interval of ranks. Where a chunk has nothing
to pick the state stays as it is and so does every redundancy: the walk goes straight to the chunk
of the lowest rank that is below the threshold.
"""

from __future__ import annotations

import math
import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.ops.slot_argmax.triton import pack_pick
from ocvtp_kernels.triton_common.greedy import load_row, nan_last, times
from ocvtp_kernels.triton_common.greedy_tiles import expansion_tile
from ocvtp_kernels.triton_common.launch import launch, unit_stride


@triton.jit
def after_pick(similarity, owners, pick, count, token, live, row_stride, width, best, nearest):
    """The state once ``pick`` int32 is the ``count``-th of the order."""
    row = nan_last(load_row(similarity, pick.to(tl.int64), row_stride, token, live, 0.0))
    closer = row > best
    # Nobody asks for owners before the end, so they take no registers.
    tl.store(owners + token, tl.zeros_like(token).to(tl.int64) + count, mask=live & closer)
    down = token // width - pick // width
    across = token % width - pick % width
    return (
        tl.where(closer, row, best),
        tl.minimum(nearest, down * down + across * across),
    )


@triton.jit
def redundancy_of(best, nearest, spread, diameter):
    """``max_s similarity_js * (1 + spread * distance_j)``, rounded as the reference rounds it."""
    distance = tl.div_rn(tl.sqrt_rn(nearest.to(tl.float32)), tl.zeros_like(best) + diameter)
    return times(best, 1.0 + times(distance, spread))


@triton.jit
def places_of(
    best,
    redundancy,
    merits,
    token,
    live,
    free,
    num_tokens,
    TOKENS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Each free token's rank among the free, least redundant first, times TOKENS plus its id.

    NaN tokens come last. Of others TOKENS squared. ``merits`` is scratch.
    """
    # No score, -inf included, is packed as low as an id alone.
    merit = tl.where(best == best, pack_pick(1.0 - redundancy, token), 2147483647 - token)
    mine = tl.where(free, merit, -1)
    tl.debug_barrier()
    tl.store(merits + token, mine, mask=live)
    tl.debug_barrier()
    rank = tl.zeros(token.shape, tl.int32)
    for first in range(0, num_tokens, UNROLL):
        for ahead in tl.static_range(UNROLL):
            rival = tl.cast(first + ahead, tl.int32)
            theirs = tl.load(merits + rival, mask=rival < num_tokens, other=-1)
            rank += (theirs > mine).to(tl.int32)
    return tl.where(free, rank * TOKENS + token, TOKENS * TOKENS)


@triton.jit
def as_double(bits):
    """The double of these bits."""
    return tl.cast(bits, tl.int64).to(tl.float64, bitcast=True)


@triton.jit(do_not_specialize=["num_pivots", "budget", "threshold", "step", "chunk"])
def centrifugal_kernel(
    similarity,
    pivots,
    merits,
    order,
    counts,
    owners,
    closeness,
    num_tokens,
    num_pivots,
    width,
    budget,
    spread,
    diameter,
    threshold,
    step,
    chunk,
    image_stride,
    row_stride,
    pivot_stride,
    PAD: tl.constexpr,
    TOKENS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Order int64 ``[B, T]``, counts int64 ``[B]``, owners int64 and closeness float32 ``[B, N]``.

    ``threshold`` and ``step`` are the bits of doubles, which Triton would pass as float32: their
    sums are rounded where they are compared. ``merits`` is scratch, int64 ``[B, N]``. Picked is
    whatever lies at distance 0 of a pick: no two tokens share a cell.
    """
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, TOKENS)
    live = token < num_tokens
    similarity += image * image_stride
    pivots += image * pivot_stride
    merits += image * num_tokens
    order += image * budget
    owners += image * num_tokens
    closeness += image * num_tokens
    tl.store(owners + token, tl.zeros([TOKENS], tl.int64), mask=live)
    tl.debug_barrier()
    own = load_row(similarity, token.to(tl.int64), row_stride, token, live, 0.0)
    # Of a NaN token NaN, which stays: no comparison holds with it, so no threshold lets it in.
    best = tl.where(own == own, float("-inf"), own)
    nearest = tl.full([TOKENS], 2147483647, tl.int32)
    count = 0
    while count < num_pivots:
        pick = tl.load(pivots + count).to(tl.int32)
        tl.store(order + count, pick.to(tl.int64))
        best, nearest = after_pick(
            similarity, owners, pick, count, token, live, row_stride, width, best, nearest
        )
        count += 1

    limit = as_double(threshold)
    picked = count
    padding = 0
    before = -1
    while (before < count) & (count < budget):
        before = count
        redundancy = redundancy_of(best, nearest, spread, diameter)
        free = live & (nearest > 0)
        place = places_of(best, redundancy, merits, token, live, free, num_tokens, TOKENS, UNROLL)
        # Padding is one more pass, of one chunk, that takes any token.
        stride = tl.where(padding == 1, TOKENS, chunk)
        start = 0
        walking = 1
        while walking == 1:
            redundancy = redundancy_of(best, nearest, spread, diameter)
            accepted = (redundancy < limit.to(tl.float32)) | (padding == 1)
            waiting = tl.where(accepted & (place >= start * TOKENS), place, TOKENS * TOKENS)
            lowest = tl.min(waiting) // TOKENS
            # The first chunk's tokens were the least redundant: without one of them the pass ends.
            walking = ((lowest < TOKENS) & ((count > before) | (lowest < stride))).to(tl.int32)
            start = tl.where(walking == 1, lowest - lowest % stride + stride, 0)
            waiting = tl.where(waiting < start * TOKENS, waiting, TOKENS * TOKENS)
            number = tl.sum((waiting < TOKENS * TOKENS).to(tl.int32))
            room = budget - count
            while (number > room) & (padding == 0):
                merit = tl.where(waiting < TOKENS * TOKENS, 1.0 - redundancy, float("inf"))
                worst = (merit == tl.min(merit)) & (waiting < TOKENS * TOKENS)
                gone = tl.max(tl.where(worst, waiting, -1))
                waiting = tl.where(waiting == gone, TOKENS * TOKENS, waiting)
                number -= 1
            last = count + tl.minimum(number, room)
            while count < last:
                # Rank and id together: one minimum finds both.
                lowest = tl.min(waiting)
                waiting = tl.where(waiting == lowest, TOKENS * TOKENS, waiting)
                pick = lowest % TOKENS
                tl.store(order + count, pick.to(tl.int64))
                best, nearest = after_pick(
                    similarity, owners, pick, count, token, live, row_stride, width, best, nearest
                )
                count += 1
            walking = walking * (count < budget).to(tl.int32)
        limit += as_double(step)
        picked = tl.where(padding == 1, picked, count)
        if PAD:
            short = (count == before) & (padding == 0)
            padding = tl.where(short, 1, padding)
            before = tl.where(short, -1, before)

    tl.store(counts + image, tl.cast(picked, tl.int64))
    nothing = tl.full([TOKENS], -1, tl.int64)
    tl.store(order + token, nothing, mask=(token >= count) & (token < budget))
    tl.debug_barrier()
    owned = (nearest > 0) & (best == best)
    tl.store(owners + token, nothing, mask=live & ~owned)
    tl.store(closeness + token, tl.where(owned, best, 0.0), mask=live)


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
    """`ocvtp_kernels.ops.centrifugal_select.reference.centrifugal_select` in one launch."""
    similarity, pivots = unit_stride(similarity), unit_stride(pivots)
    batch, num_tokens, _ = similarity.shape
    order = torch.empty((batch, budget), dtype=torch.int64, device=similarity.device)
    counts, owners = order.new_empty((batch,)), order.new_empty((batch, num_tokens))
    closeness = similarity.new_empty((batch, num_tokens), dtype=torch.float32)
    tile = expansion_tile(num_tokens)
    launch(
        centrifugal_kernel,
        (batch,),
        {
            "similarity": similarity,
            "pivots": pivots,
            "merits": order.new_empty((batch, num_tokens)),
            "order": order,
            "counts": counts,
            "owners": owners,
            "closeness": closeness,
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
            "TOKENS": tile.tokens,
            "UNROLL": tile.unroll,
        },
        num_warps=tile.warps,
    )
    return order, counts, owners, closeness


def _bits(number: float) -> int:
    """A double as the integer of the same bits."""
    bits: int = struct.unpack("<q", struct.pack("<d", number))[0]
    return bits
