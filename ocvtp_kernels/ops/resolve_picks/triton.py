"""From picks to exactly ``budget`` ids and their tokens: dedupe, pad, trim, sort, gather at once.

Tokens are kept as `ocvtp_kernels.ops.argmax_gather.reference.resolve_picks` keeps them: picked ones first,
by their slot's peak, then rank within the slot, then id; the others by importance, then id. Only
one of the two kinds is cut: the picked where they fill the budget, else the others. The cut is
found bit by bit in their 32-bit scores. Those that tie there are taken by id while positions are
counted, and so ids come out ascending without a sort.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ocvtp_kernels.ops.slot_argmax.triton import best_pick, pick_token
from ocvtp_kernels.triton_common.dependent import wait_for_launches_before
from ocvtp_kernels.triton_common.maths import ordered, ordered_bits


@triton.jit
def claim(claims, picked, score, rank, live_slot, num_tokens):
    """Each token's best pick, ``score * 2^30 + (2^30 - 1 - rank)``; score as `ordered` gives it."""
    live = live_slot & (picked >= 0) & (picked < num_tokens)
    order = score * 1073741824 + (1073741823 - rank)
    tl.atomic_max(claims + picked, order, mask=live, sem="relaxed")


@triton.jit
def narrow(keys, wanted, here, above, unit):
    """Closes in on the ``wanted``-th largest of int32 keys from -1 up, two bits at a time.

    It is in [0, 4 * unit); ``here`` keys are in it or above, and ``above`` above. Returns the ends
    of a smaller range and these counts: all in the range are wanted too, or all are equal.
    """
    low = unit - unit
    top = 4 * (unit - 1) + 3
    while (unit > 0) & (here > wanted):
        # No difference overflows, and a sign bit takes fewer instructions than a comparison. Counts
        # have 15 bits, so that two go through one sum.
        less = low + (unit - 1) - keys
        ends = ((less >> 31) & 1) + (((less + 2 * unit) >> 31) & 65536)
        ends, two = tl.split(tl.sum(tl.join(ends, ((less + unit) >> 31) & 1), axis=0))
        one, three = ends & 65535, ends >> 16
        low += tl.where(
            three >= wanted,
            3 * unit,
            tl.where(two >= wanted, 2 * unit, tl.where(one >= wanted, unit, 0)),
        )
        above = tl.where(
            one < wanted, one, tl.where(two < wanted, two, tl.where(three < wanted, three, above))
        )
        here = tl.where(
            three >= wanted, three, tl.where(two >= wanted, two, tl.where(one >= wanted, one, here))
        )
        top = low + (unit - 1)
        # After 2 comes 1, though a single bit is left.
        unit = (unit + 2) >> 2
    return low, top, here, above


@triton.jit(do_not_specialize=["budget", "ranks", "blocks"])
def resolve_kernel(
    picks,
    peak,
    importance,
    final,
    tokens,
    ids,
    claims,
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
    RANKED: tl.constexpr,
    IMPORTANCE: tl.constexpr,
    GATHER: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCKS: tl.constexpr,
    PASSES: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Ids int64 ``[B, budget]`` ascending, and with GATHER their final tokens.

    ``parts`` programs an image find the same ids, and each gathers its rows. Picks are those of
    `argmax_kernel` with PACKED, ``[B, blocks, K]`` or, with RANKED, the best of each rank
    ``[B, ranks, K]``; otherwise ids ``[B, K, ranks]`` beside ``peak`` ``[B, K]``.
    """
    wait_for_launches_before(PDL)
    program = tl.program_id(0).to(tl.int64)
    part = tl.program_id(0) % parts
    image = (tl.program_id(0) // parts).to(tl.int64)
    # Each program has its own, so that none waits for another.
    claims += program * num_tokens
    token = tl.arange(0, TOKENS)
    live_token = token < num_tokens
    tl.store(claims + token, tl.full([TOKENS], -1, tl.int64), mask=live_token)
    tl.debug_barrier()

    for first_slot in range(0, num_slots, SLOTS):
        slot = first_slot + tl.arange(0, SLOTS)
        live_slot = slot < num_slots
        place = image * num_slots + slot
        if PACKED:
            of_image = picks + image * (ranks if RANKED else blocks) * num_slots
            if RANKED:
                best = tl.load(of_image + slot, mask=live_slot, other=-1)
            else:
                best = best_pick(of_image, slot, live_slot, blocks, num_slots, BLOCKS, PASSES)
            score = best >> 31
            claim(claims, pick_token(best), score, 0, live_slot, num_tokens)
            if RANKED:
                for rank in range(1, ranks):
                    pick = tl.load(of_image + rank * num_slots + slot, mask=live_slot, other=-1)
                    claim(claims, pick_token(pick), score, rank, live_slot, num_tokens)
        else:
            score = ordered(tl.load(peak + place, mask=live_slot, other=0.0).to(tl.float32))
            for rank in range(ranks):
                picked = tl.load(picks + place * ranks + rank, mask=live_slot, other=-1)
                claim(claims, picked, score, rank, live_slot, num_tokens)
    tl.debug_barrier()

    # Past the first cache, which atomics may leave stale.
    claimed = tl.load(claims + token, mask=live_token, other=-1, cache_modifier=".cg")
    padding = tl.zeros([TOKENS], tl.float32)
    if IMPORTANCE:
        scores = importance + image * importance_image_stride + token
        padding = tl.load(scores, mask=live_token, other=0.0).to(tl.float32)
    picked = claimed >= 0
    num_picked = tl.sum(picked.to(tl.int32), axis=0)
    # One kind is cut; of the other, all are kept or none. Kept ones stand above every score, those
    # that are not below.
    cut_picked = num_picked >= budget
    least, most = tl.full([], -2147483648, tl.int32), tl.full([], 2147483647, tl.int32)
    keys = tl.where(
        picked,
        tl.where(cut_picked, ((claimed >> 30) - 2147483648).to(tl.int32), most),
        tl.where(live_token & (not cut_picked), ordered_bits(padding), least),
    )
    # The sign first; the scores of the sign where the cut is are then above 0, or 0.
    upper = tl.sum((keys >= 0).to(tl.int32), axis=0)
    positive = upper >= budget
    keys = tl.where(
        keys >= 0, tl.where(positive, keys, most), tl.where(positive, -1, (keys & most) - 1)
    )
    here = tl.where(positive, upper, tl.where(cut_picked, num_picked, num_tokens))
    unit = tl.full([], 536870912, tl.int32)
    low, top, here, above = narrow(keys, budget, here, unit - unit, unit)
    if RANKED:
        # The picks of a slot tie with one another.
        if cut_picked & (here > budget):
            unit = ranks - ranks + 1
            while 4 * unit < ranks:
                unit *= 4
            rank = (claimed & 1073741823).to(tl.int32) - 1073741824 + 4 * unit
            keys = tl.where(keys < low, -1, tl.where(keys > top, most, rank))
            low, top, here, above = narrow(keys, budget, here, above, unit)
    sure = keys > top
    tied = (keys >= low) & (keys <= top)
    before = tl.cumsum(sure.to(tl.int32) + tl.where(tied, 65536, 0), axis=0)
    chosen = sure | (tied & ((before >> 16) <= budget - above))
    position = (before & 65535) + tl.minimum(before >> 16, budget - above) - 1
    ids += image * budget
    # All of the image's programs store the same, so that none waits for another.
    tl.store(ids + position, token.to(tl.int64), mask=chosen)
    if GATHER:
        tl.debug_barrier()
        last = tl.minimum((part + 1) * rows_per_part, budget)
        for first_row in range(part * rows_per_part, last, ROWS):
            row = first_row + tl.arange(0, ROWS)
            live_row = row < last
            source = tl.load(ids + row, mask=live_row, other=0)
            for first_column in range(0, width, COLUMNS):
                column = first_column + tl.arange(0, COLUMNS)
                live = live_row[:, None] & (column < width)[None, :]
                from_row = final + image * final_image_stride + source[:, None] * final_row_stride
                values = tl.load(from_row + column[None, :], mask=live)
                to_row = tokens + (image * budget + row.to(tl.int64))[:, None] * width
                tl.store(to_row + column[None, :], values, mask=live)
