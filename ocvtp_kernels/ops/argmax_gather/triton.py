"""Launches the selection: argmax, resolve and gather."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.ops.argmax_gather.tiles import argmax_tile, best_tile, gather_parts, resolve_tile
from ocvtp_kernels.ops.resolve_picks.triton import resolve_kernel
from ocvtp_kernels.ops.slot_argmax.triton import argmax_kernel, best_kernel
from ocvtp_kernels.ops.slot_attention.tiles import ONE_TILE
from ocvtp_kernels.ops.slot_attention.triton.forward import Competition, standings
from ocvtp_kernels.triton_common.archs import arch_of
from ocvtp_kernels.triton_common.launch import launch, unit_stride
from ocvtp_kernels.triton_common.linear_tiles import ceil_div

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def pick(
    competition: Competition, ranks: int, evidence: bool, rows: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The slots' picks and, if asked for, the tokens' evidence: one argmax a rank.

    Args:
        competition: the last iteration's slots and tokens.
        ranks: picks a slot.
        evidence: keep each token's highest score over slots.
        rows: float32 ``[B, N, 2]`` to hold the standings, where there are many slots.

    Returns:
        picks int64, packed: the best of each block ``[B, blocks, K]`` where ranks is 1, else the
        best of each rank ``[B, ranks, K]``; evidence float32 ``[B, N]`` or None.
    """
    q, k = competition.q, competition.k
    batch, num_slots, _ = q.shape
    num_tokens, device = k.shape[1], q.device
    tile = argmax_tile(arch_of(device), q.dtype, num_slots)
    blocks = ceil_div(num_tokens, tile.tokens)
    many = num_slots > ONE_TILE
    if many:
        if rows is None:
            rows = torch.empty((batch, num_tokens, 2), dtype=torch.float32, device=device)
        standings(competition, rows)
    partial = torch.empty((batch, blocks, num_slots), dtype=torch.int64, device=device)
    best = partial if ranks == 1 else partial.new_empty((batch, ranks, num_slots))
    scores = (
        torch.empty((batch, num_tokens), dtype=torch.float32, device=device) if evidence else None
    )
    below = partial
    for rank in range(ranks):
        launch(
            argmax_kernel,
            (batch * ceil_div(num_slots, tile.slots) * blocks,),
            {
                **competition.arguments(tile),
                "standings": q if rows is None else rows,
                "below": below,
                "picks": partial,
                "evidence": q if scores is None else scores,
                "STANDINGS": many,
                "BELOW": rank > 0,
                "EVIDENCE": evidence and rank == 0,
            },
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        if ranks > 1:
            _best(partial, best, None, None, rank)
            below = best[:, rank].contiguous()
    return best, scores


def _best(
    picks: Tensor,
    best: Tensor,
    ids: Tensor | None,
    peak: Tensor | None,
    rank: int = 0,
    log: bool = False,
) -> None:
    """Row ``rank`` of ``best`` ``[B, ranks, K]`` from picks ``[B, blocks, K]``, or ids and peak."""
    batch, blocks, num_slots = picks.shape
    warps = 4
    tile = best_tile(num_slots, blocks, warps, 32)
    launch(
        best_kernel,
        (batch * ceil_div(num_slots, tile.slots),),
        {
            "picks": picks,
            "best": best,
            "ids": picks if ids is None else ids,
            "peak": picks if peak is None else peak,
            "blocks": blocks,
            "num_slots": num_slots,
            "rank": rank,
            "ranks": best.shape[1],
            "ANSWER": ids is not None,
            "LOG": log,
            "SLOTS": tile.slots,
            "BLOCKS": tile.blocks,
            "PASSES": tile.passes,
        },
        num_warps=warps,
    )


def resolve(
    picks: Tensor,
    peak: Tensor | None,
    importance: Tensor | None,
    num_tokens: int,
    budget: int,
    ids: Tensor,
    final: Tensor | None = None,
    tokens: Tensor | None = None,
    ranks: int = 1,
) -> None:
    """Ids, and with ``final`` their rows, in one launch.

    Args:
        picks: packed, as `pick` gives them; or with ``peak`` ids int64 ``[B, K, ranks]``.
        peak: ``[B, K]`` floating, or None for packed picks.
        importance: ``[B, N]``, neighbours adjacent; None pads with the lowest ids.
        ids: int64 ``[B, budget]``, written.
        final: ``[B, N, C]``, neighbours of the last dimension adjacent.
        tokens: ``[B, budget, C]`` contiguous, written.
    """
    packed = peak is None
    batch = picks.shape[0]
    num_slots = picks.shape[2] if packed else picks.shape[1]
    blocks = picks.shape[1] if packed and ranks == 1 else 1
    width, size = 0, 1
    if final is not None and tokens is not None:
        final, tokens = _as_integers(final), _as_integers(tokens)
        width, size = final.shape[2], final.element_size()
    tile = resolve_tile(num_slots, blocks, num_tokens, width or 1, size)
    parts = gather_parts(arch_of(picks.device), batch, budget) if final is not None else 1
    launch(
        resolve_kernel,
        (batch * parts,),
        {
            "picks": picks,
            "peak": picks if peak is None else peak,
            "importance": picks if importance is None else importance,
            "final": picks if final is None else final,
            "tokens": picks if tokens is None else tokens,
            "ids": ids,
            "claims": picks.new_empty((batch * parts, num_tokens)),
            "blocks": blocks,
            "ranks": ranks,
            "num_slots": num_slots,
            "num_tokens": num_tokens,
            "width": width,
            "budget": budget,
            "parts": parts,
            "rows_per_part": ceil_div(budget, parts),
            "importance_image_stride": 0 if importance is None else importance.stride(0),
            "final_image_stride": 0 if final is None else final.stride(0),
            "final_row_stride": 0 if final is None else final.stride(1),
            "PACKED": packed,
            "RANKED": ranks > 1,
            "IMPORTANCE": importance is not None,
            "GATHER": final is not None,
            "SLOTS": tile.best.slots,
            "BLOCKS": tile.best.blocks,
            "PASSES": tile.best.passes,
            "TOKENS": tile.tokens,
            "ROWS": tile.rows,
            "COLUMNS": tile.columns,
        },
        num_warps=tile.warps,
        # Else ptxas may spill a little where there are few warps as well.
    )


def _as_integers(rows: Tensor) -> Tensor:
    """The same bytes as whole numbers: rows are copied, whatever they hold."""
    size = rows.element_size()
    return rows.view(INTEGERS[size]) if size in INTEGERS else rows.view(torch.int64)


def slot_argmax(q: Tensor, k: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """`ocvtp_kernels.ops.argmax_gather.reference.slot_argmax`, the attention never stored."""
    picks, _ = pick(_competition(q, k, scale), 1, False)
    ids = picks.new_empty(q.shape[:2])
    peak = q.new_empty(q.shape[:2])
    _best(picks, picks, ids, peak)
    return ids, peak


def picks_of(
    competition: Competition, top_k: int, rows: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The last iteration's picks ``[B, K, top_k]``, peaks ``[B, K]`` and evidence ``[B, N]``."""
    best, evidence = pick(competition, top_k, True, rows)
    assert evidence is not None
    batch, num_slots, _ = competition.q.shape
    ids = best.new_empty((top_k, batch, num_slots))
    peaks = evidence.new_empty((top_k, batch, num_slots))
    for rank in range(top_k):
        ranked = best if top_k == 1 else best[:, rank : rank + 1].contiguous()
        _best(ranked, ranked, ids[rank], peaks[rank], log=True)
    return ids.permute(1, 2, 0).contiguous(), peaks[0], evidence


def resolve_picks(
    picks: Tensor,
    peak: Tensor,
    importance: Tensor | None,
    budget: int,
    num_tokens: int | None = None,
) -> Tensor:
    """`ocvtp_kernels.ops.argmax_gather.reference.resolve_picks` in one launch."""
    if importance is not None:
        num_tokens = importance.shape[1]
        importance = unit_stride(importance)
    assert num_tokens is not None
    picks = (picks if picks.dim() == 3 else picks.unsqueeze(-1)).contiguous()
    ids = picks.new_empty((picks.shape[0], budget))
    resolve(picks, peak.contiguous(), importance, num_tokens, budget, ids, ranks=picks.shape[2])
    return ids


def argmax_gather(
    q: Tensor,
    k: Tensor,
    final: Tensor,
    importance: Tensor | None,
    budget: int,
    scale: float | None = None,
    top_k: int = 1,
) -> tuple[Tensor, Tensor]:
    """`ocvtp_kernels.ops.argmax_gather.reference.argmax_gather` in two launches at ``top_k`` 1."""
    return select(_competition(q, k, scale), final, importance, budget, top_k)


def select(
    competition: Competition,
    final: Tensor,
    importance: Tensor | None,
    budget: int,
    top_k: int,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The last iteration's competition to kept tokens ``[B, T, C]`` and ids ``[B, T]``."""
    picks, evidence = pick(competition, top_k, importance is None, rows)
    padding = evidence if importance is None else unit_stride(importance)
    batch, num_tokens, width = final.shape
    tokens = final.new_empty((batch, budget, width))
    ids = picks.new_empty((batch, budget))
    resolve(
        picks,
        None,
        padding,
        num_tokens,
        budget,
        ids,
        unit_stride(final),
        tokens,
        top_k,
    )
    return tokens, ids


def _competition(q: Tensor, k: Tensor, scale: float | None) -> Competition:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return Competition(unit_stride(q), unit_stride(k), scale)
