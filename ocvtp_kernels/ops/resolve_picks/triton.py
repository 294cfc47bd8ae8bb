"""From high-k ids to exactly ``budget`` ids and their tokens: dedupe, pad, trim, sort and gather.

The rule is that of `ocvtp::resolve_picks`: tokens that a slot chose come first, by the slot's
max_logprob, then the rank within the slot, then id; the others by importance, then id. Only one of
the two kinds is cut: the chosen ones where they fill the budget, else the others. The cut is found
two bits at a time in their 32-bit scores. Tokens that tie at the cut are taken by id while
positions are counted, so ids come out ascending without a sort.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ocvtp_kernels.ops.resolve_picks.tiles import gather_splits, resolve_tile
from ocvtp_kernels.triton_common.archs import arch_of
from ocvtp_kernels.triton_common.blocks import ceil_div
from ocvtp_kernels.triton_common.dependent import wait_for_launches_before
from ocvtp_kernels.triton_common.launch import launch, unit_stride
from ocvtp_kernels.triton_common.maths import ordered, ordered_bits
from ocvtp_kernels.triton_common.packed_argmax import reduce_packed, unpack_token

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit
def store_token_key(token_keys, token, score, rank, mask_slot, num_tokens):
    """Raises a token's key to ``score * 2^30 + (2^30 - 1 - rank)``; score as `ordered` gives it."""
    mask = mask_slot & (token >= 0) & (token < num_tokens)
    key = score * 1073741824 + (1073741823 - rank)
    tl.atomic_max(token_keys + token, key, mask=mask, sem="relaxed")


@triton.jit
def narrow(keys, wanted, at_least, above, unit):
    """Narrows the range of the ``wanted``-th largest of int32 keys >= -1, two bits at a time.

    The range is [0, 4 * unit); ``at_least`` keys are in it or above, and ``above`` keys above.
    Returns low and high of a smaller range and its two counts: either all keys in it are wanted, or
    all are equal.
    """
    low = unit - unit
    high = 4 * (unit - 1) + 3
    while (unit > 0) & (at_least > wanted):
        # A sign bit takes fewer instructions than a comparison, and no difference overflows. Counts
        # have 15 bits, so one sum carries two of them.
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
        at_least = tl.where(
            three >= wanted,
            three,
            tl.where(two >= wanted, two, tl.where(one >= wanted, one, at_least)),
        )
        high = low + (unit - 1)
        # An odd number of bits ends with a step of one bit.
        unit = (unit + 2) >> 2
    return low, high, at_least, above


@triton.jit(do_not_specialize=["budget", "top_k", "num_blocks"])
def resolve_kernel(
    topk_ids, max_logprob, importance, final_tokens, tokens, ids, token_keys,
    num_blocks, top_k, num_slots, num_tokens, width, budget, num_splits, rows_per_split,
    importance_image_stride, final_image_stride, final_row_stride,
    PACKED: tl.constexpr, RANKED: tl.constexpr, IMPORTANCE: tl.constexpr, GATHER: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr, BLOCK_PARTIALS: tl.constexpr, UNROLL: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Ids int64 ``[B, budget]`` ascending, and with GATHER their final tokens.

    ``num_splits`` programs an image find the same ids, and each gathers its rows. ``topk_ids`` is
    with PACKED what `argmax_kernel` stored, ``[B, num_blocks, K]``, or with RANKED the best of each
    rank ``[B, top_k, K]``; otherwise ids ``[B, K, top_k]`` beside ``max_logprob`` ``[B, K]``.
    """
    wait_for_launches_before(PDL)
    program = tl.program_id(0).to(tl.int64)
    split = tl.program_id(0) % num_splits
    image = (tl.program_id(0) // num_splits).to(tl.int64)
    # Each program has keys of its own, so that none waits for another.
    token_keys += program * num_tokens
    token = tl.arange(0, BLOCK_TOKENS)
    mask_token = token < num_tokens
    tl.store(token_keys + token, tl.full([BLOCK_TOKENS], -1, tl.int64), mask=mask_token)
    tl.debug_barrier()

    for first_slot in range(0, num_slots, BLOCK_SLOTS):
        slot = first_slot + tl.arange(0, BLOCK_SLOTS)
        mask_slot = slot < num_slots
        offs_slot = image * num_slots + slot
        if PACKED:
            of_image = topk_ids + image * (top_k if RANKED else num_blocks) * num_slots
            if RANKED:
                best = tl.load(of_image + slot, mask=mask_slot, other=-1)
            else:
                best = reduce_packed(
                    of_image, slot, mask_slot, num_blocks, num_slots, BLOCK_PARTIALS, UNROLL
                )
            score = best >> 31
            store_token_key(token_keys, unpack_token(best), score, 0, mask_slot, num_tokens)
            if RANKED:
                for rank in range(1, top_k):
                    packed = tl.load(of_image + rank * num_slots + slot, mask=mask_slot, other=-1)
                    store_token_key(
                        token_keys, unpack_token(packed), score, rank, mask_slot, num_tokens
                    )
        else:
            score = ordered(
                tl.load(max_logprob + offs_slot, mask=mask_slot, other=0.0).to(tl.float32)
            )
            for rank in range(top_k):
                chosen = tl.load(topk_ids + offs_slot * top_k + rank, mask=mask_slot, other=-1)
                store_token_key(token_keys, chosen, score, rank, mask_slot, num_tokens)
    tl.debug_barrier()

    # Atomics bypass the L1 cache, so the load does too.
    token_key = tl.load(token_keys + token, mask=mask_token, other=-1, cache_modifier=".cg")
    padding = tl.zeros([BLOCK_TOKENS], tl.float32)
    if IMPORTANCE:
        scores = importance + image * importance_image_stride + token
        padding = tl.load(scores, mask=mask_token, other=0.0).to(tl.float32)
    is_topk = token_key >= 0
    num_topk = tl.sum(is_topk.to(tl.int32), axis=0)
    # One kind is cut, the other kept or dropped whole: max_key is above every score, min_key below.
    cut_topk = num_topk >= budget
    min_key, max_key = tl.full([], -2147483648, tl.int32), tl.full([], 2147483647, tl.int32)
    keys = tl.where(
        is_topk,
        tl.where(cut_topk, ((token_key >> 30) - 2147483648).to(tl.int32), max_key),
        tl.where(mask_token & (not cut_topk), ordered_bits(padding), min_key),
    )
    # The sign first: scores of the sign at which the cut lies become keys >= 0.
    upper = tl.sum((keys >= 0).to(tl.int32), axis=0)
    positive = upper >= budget
    keys = tl.where(
        keys >= 0, tl.where(positive, keys, max_key), tl.where(positive, -1, (keys & max_key) - 1)
    )
    at_least = tl.where(positive, upper, tl.where(cut_topk, num_topk, num_tokens))
    unit = tl.full([], 536870912, tl.int32)
    low, high, at_least, above = narrow(keys, budget, at_least, unit - unit, unit)
    if RANKED:
        # Ids of one slot have equal scores, so the rank within the slot decides.
        if cut_topk & (at_least > budget):
            unit = top_k - top_k + 1
            while 4 * unit < top_k:
                unit *= 4
            rank = (token_key & 1073741823).to(tl.int32) - 1073741824 + 4 * unit
            keys = tl.where(keys < low, -1, tl.where(keys > high, max_key, rank))
            low, high, at_least, above = narrow(keys, budget, at_least, above, unit)
    kept = keys > high
    tied = (keys >= low) & (keys <= high)
    before = tl.cumsum(kept.to(tl.int32) + tl.where(tied, 65536, 0), axis=0)
    selected = kept | (tied & ((before >> 16) <= budget - above))
    position = (before & 65535) + tl.minimum(before >> 16, budget - above) - 1
    ids += image * budget
    # All programs of an image store the same ids, so that none waits for another.
    tl.store(ids + position, token.to(tl.int64), mask=selected)
    if GATHER:
        tl.debug_barrier()
        end_row = tl.minimum((split + 1) * rows_per_split, budget)
        for first_row in range(split * rows_per_split, end_row, BLOCK_ROWS):
            row = first_row + tl.arange(0, BLOCK_ROWS)
            mask_row = row < end_row
            source = tl.load(ids + row, mask=mask_row, other=0)
            for first_column in range(0, width, BLOCK_COLUMNS):
                column = first_column + tl.arange(0, BLOCK_COLUMNS)
                mask = mask_row[:, None] & (column < width)[None, :]
                source_row = (
                    final_tokens + image * final_image_stride + source[:, None] * final_row_stride
                )
                values = tl.load(source_row + column[None, :], mask=mask)
                target_row = tokens + (image * budget + row.to(tl.int64))[:, None] * width
                tl.store(target_row + column[None, :], values, mask=mask)


def resolve(
    topk_ids: Tensor,
    max_logprob: Tensor | None,
    importance: Tensor | None,
    num_tokens: int,
    budget: int,
    ids: Tensor,
    final_tokens: Tensor | None = None,
    tokens: Tensor | None = None,
    top_k: int = 1,
) -> None:
    """Ids, and with ``final_tokens`` their rows, in one launch.

    Args:
        topk_ids: packed, as `packed_topk_of` gives them; or with ``max_logprob`` ids int64
            ``[B, K, top_k]``.
        max_logprob: ``[B, K]`` floating, or None for packed ids.
        importance: ``[B, N]``, last dimension contiguous; None pads with the lowest ids.
        ids: int64 ``[B, budget]``, written.
        final_tokens: ``[B, N, C]``, last dimension contiguous.
        tokens: ``[B, budget, C]`` contiguous, written.
    """
    packed = max_logprob is None
    batch = topk_ids.shape[0]
    num_slots = topk_ids.shape[2] if packed else topk_ids.shape[1]
    num_blocks = topk_ids.shape[1] if packed and top_k == 1 else 1
    width, element_size = 0, 1
    if final_tokens is not None and tokens is not None:
        final_tokens, tokens = _as_integers(final_tokens), _as_integers(tokens)
        width, element_size = final_tokens.shape[2], final_tokens.element_size()
    tile = resolve_tile(num_slots, num_blocks, num_tokens, width or 1, element_size)
    gather = final_tokens is not None
    num_splits = gather_splits(arch_of(topk_ids.device), batch, budget) if gather else 1
    launch(
        resolve_kernel,
        (batch * num_splits,),
        {
            "topk_ids": topk_ids,
            "max_logprob": topk_ids if max_logprob is None else max_logprob,
            "importance": topk_ids if importance is None else importance,
            "final_tokens": topk_ids if final_tokens is None else final_tokens,
            "tokens": topk_ids if tokens is None else tokens,
            "ids": ids,
            "token_keys": topk_ids.new_empty((batch * num_splits, num_tokens)),
            "num_blocks": num_blocks,
            "top_k": top_k,
            "num_slots": num_slots,
            "num_tokens": num_tokens,
            "width": width,
            "budget": budget,
            "num_splits": num_splits,
            "rows_per_split": ceil_div(budget, num_splits),
            "importance_image_stride": 0 if importance is None else importance.stride(0),
            "final_image_stride": 0 if final_tokens is None else final_tokens.stride(0),
            "final_row_stride": 0 if final_tokens is None else final_tokens.stride(1),
            "PACKED": packed,
            "RANKED": top_k > 1,
            "IMPORTANCE": importance is not None,
            "GATHER": gather,
            "BLOCK_SLOTS": tile.reduce.block_slots,
            "BLOCK_PARTIALS": tile.reduce.block_partials,
            "UNROLL": tile.reduce.unroll,
            "BLOCK_TOKENS": tile.block_tokens,
            "BLOCK_ROWS": tile.block_rows,
            "BLOCK_COLUMNS": tile.block_columns,
        },
        num_warps=tile.num_warps,
    )


def _as_integers(rows: Tensor) -> Tensor:
    """The same bytes as integers: rows of any dtype are copied by one of four kernels."""
    element_size = rows.element_size()
    return rows.view(INTEGERS.get(element_size, torch.int64))


def resolve_picks(
    topk_ids: Tensor,
    max_logprob: Tensor,
    importance: Tensor | None,
    budget: int,
    num_tokens: int | None = None,
) -> Tensor:
    """`ocvtp::resolve_picks` in one launch."""
    if importance is not None:
        num_tokens = importance.shape[1]
        importance = unit_stride(importance)
    assert num_tokens is not None
    topk_ids = (topk_ids if topk_ids.dim() == 3 else topk_ids.unsqueeze(-1)).contiguous()
    top_k = topk_ids.shape[2]
    ids = topk_ids.new_empty((topk_ids.shape[0], budget))
    resolve(topk_ids, max_logprob.contiguous(), importance, num_tokens, budget, ids, top_k=top_k)
    return ids
