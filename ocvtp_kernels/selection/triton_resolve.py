"""From picks to exactly ``budget`` ids and their tokens: dedupe, pad, trim, sort, gather at once.

Every token gets one integer that orders as `ocvtp_kernels.selection.reference.resolve_picks` does:
picked tokens first, by their slot's peak, then rank within the slot, then id; the others by
importance, then id. All differ, so the ``budget``-th largest is a threshold, found bit by bit, and
the ids above it come out ascending without a sort.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ocvtp_kernels.gpu.maths import ordered
from ocvtp_kernels.selection.triton_argmax import best_pick, pick_token


@triton.jit
def token_order(picked, score, tie):
    """``picked * 2^62 + score * 2^30 + (2^30 - 1 - tie)``; score as `ordered` gives it."""
    return picked * 4611686018427387904 + score * 1073741824 + (1073741823 - tie)


@triton.jit
def threshold(orders, budget):
    """The ``budget``-th largest of distinct integers in [0, 2^63), two bits at a time."""
    unit = tl.cast(4611686018427387904, tl.int64)
    found = tl.where(tl.sum((orders >= unit).to(tl.int32)) >= budget, unit, unit - unit)
    for _step in range(31):
        unit = unit >> 2
        # Three counts in one sum.
        above = (orders >= found + unit).to(tl.int64)
        above += (orders >= found + 2 * unit).to(tl.int64) << 20
        above += (orders >= found + 3 * unit).to(tl.int64) << 40
        counts = tl.sum(above)
        steps = ((counts & 1048575) >= budget).to(tl.int64)
        steps += (((counts >> 20) & 1048575) >= budget).to(tl.int64)
        steps += ((counts >> 40) >= budget).to(tl.int64)
        found += steps * unit
    return found


@triton.jit(do_not_specialize=["budget", "ranks", "blocks"])
def resolve_kernel(
    picks,
    peak,
    importance,
    final,
    tokens,
    ids,
    orders,
    kept,
    blocks,
    ranks,
    num_slots,
    num_tokens,
    width,
    budget,
    parts,
    rows_per_part,
    importance_image_stride,
    final_image_stride,
    final_row_stride,
    PACKED: tl.constexpr,
    IMPORTANCE: tl.constexpr,
    GATHER: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCKS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Ids int64 ``[B, budget]`` ascending, and with GATHER their final tokens.

    ``parts`` programs an image find the same ids, and each gathers its rows. Picks are those of
    `argmax_kernel` with PACKED, ``[B, blocks, K]`` if ranks is 1, else the best of each rank
    ``[B, ranks, K]``; otherwise ids ``[B, K, ranks]`` beside ``peak`` ``[B, K]``.
    """
    program = tl.program_id(0).to(tl.int64)
    part = tl.program_id(0) % parts
    image = (tl.program_id(0) // parts).to(tl.int64)
    # Each program has its own, so that none waits for another.
    orders += program * num_tokens
    token = tl.arange(0, TOKENS)
    live_token = token < num_tokens
    padding = tl.zeros([TOKENS], tl.float32)
    if IMPORTANCE:
        scores = importance + image * importance_image_stride + token
        padding = tl.load(scores, mask=live_token, other=0.0).to(tl.float32)
    not_picked = tl.zeros([TOKENS], tl.int64)
    tl.store(orders + token, token_order(not_picked, ordered(padding), token), mask=live_token)
    tl.debug_barrier()

    for first_slot in range(0, num_slots, SLOTS):
        slot = first_slot + tl.arange(0, SLOTS)
        live_slot = slot < num_slots
        for rank in range(ranks):
            if PACKED:
                first = best_pick(
                    picks + image * (ranks - 1) * num_slots,
                    image,
                    slot,
                    live_slot,
                    blocks,
                    num_slots,
                    BLOCKS,
                )
                score = first // 2147483648
                pick = first
                if rank > 0:
                    here = picks + (image * ranks + rank) * num_slots + slot
                    pick = tl.load(here, mask=live_slot, other=-1)
                picked = pick_token(pick)
            else:
                place = image * num_slots + slot
                score = ordered(tl.load(peak + place, mask=live_slot, other=0.0).to(tl.float32))
                picked = tl.load(picks + place * ranks + rank, mask=live_slot, other=-1)
            live_pick = live_slot & (picked >= 0) & (picked < num_tokens)
            one = tl.full([SLOTS], 1, tl.int64)
            order = token_order(one, score, rank * num_tokens + picked)
            tl.atomic_max(orders + picked, order, mask=live_pick, sem="relaxed")
    tl.debug_barrier()

    # Past the first cache, which atomics may leave stale.
    order = tl.load(orders + token, mask=live_token, other=-1, cache_modifier=".cg")
    chosen = order >= threshold(order, budget)
    position = tl.cumsum(chosen.to(tl.int32), axis=0) - 1
    if part == 0:
        tl.store(ids + image * budget + position, token.to(tl.int64), mask=chosen)
    if GATHER:
        kept += program * budget
        tl.store(kept + position, token, mask=chosen)
        tl.debug_barrier()
        last = tl.minimum((part + 1) * rows_per_part, budget)
        for first_row in range(part * rows_per_part, last, ROWS):
            row = first_row + tl.arange(0, ROWS)
            live_row = row < last
            source = tl.load(kept + row, mask=live_row, other=0).to(tl.int64)
            for first_column in range(0, width, COLUMNS):
                column = first_column + tl.arange(0, COLUMNS)
                live = live_row[:, None] & (column < width)[None, :]
                from_row = final + image * final_image_stride + source[:, None] * final_row_stride
                values = tl.load(from_row + column[None, :], mask=live)
                to_row = tokens + (image * budget + row.to(tl.int64))[:, None] * width
                tl.store(to_row + column[None, :], values, mask=live)
