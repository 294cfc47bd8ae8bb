"""Each slot's best tokens, made as many as the budget, and their rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.dtypes import as_copied
from ocvtp_kernels.native import upcast
from ocvtp_kernels.ops.argmax_gather import native
from ocvtp_kernels.ops.arguments import (
    check_final_tokens,
    check_importance,
    check_queries_and_keys,
    too_many_picks,
    too_many_tokens,
)
from ocvtp_kernels.ops.registry import Autocast, Gradient, Upcast, op
from ocvtp_kernels.ops.resolve_picks import resolve_picks
from ocvtp_kernels.ops.slot_argmax import scale_or_default, slot_topk
from ocvtp_kernels.ops.slot_attention.reference import log_attention, slot_logits


def select_ids(scores: Tensor, importance: Tensor | None, budget: int, top_k: int = 1) -> Tensor:
    """Picks per slot, then `resolve_picks`; without importance the tokens' own scores fill gaps.

    A token's own score is its highest over slots.

    Args:
        scores: ``[B, K, N]``, the log-attention.
        importance: ``[B, N]`` or None.

    Returns:
        ids int64 ``[B, budget]`` ascending.
    """
    topk_ids, max_logprob = slot_topk(scores, top_k)
    if importance is None:
        importance = scores.amax(dim=1)
    ids: Tensor = resolve_picks.reference(topk_ids, max_logprob, importance, budget)
    return ids


def gather_tokens(final_tokens: Tensor, ids: Tensor) -> Tensor:
    """The named rows: final tokens ``[B, N, C]``, ids ``[B, T]`` -> ``[B, T, C]``."""
    if (bits := as_copied(final_tokens)) is not final_tokens:
        return gather_tokens(bits, ids).view(final_tokens.dtype)
    # Rows are copied whole, which a gather of their channels would not do.
    if ids.shape[0] == 1 and not torch.compiler.is_compiling():
        return final_tokens[:, ids[0]]  # a graph is for any batch
    images = torch.arange(ids.shape[0], device=ids.device)
    return final_tokens[images[:, None], ids]


def fake_kept(final_tokens: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Kept tokens ``[B, T, C]`` and ids ``[B, T]`` without values."""
    batch, _, width = final_tokens.shape
    tokens = final_tokens.new_empty((batch, budget, width))
    return tokens, final_tokens.new_empty((batch, budget), dtype=torch.int64)


def _save(ctx: Any, output: tuple[Tensor, Tensor], final_tokens: Tensor) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])
    ctx.shape, ctx.is_needed = final_tokens.shape, final_tokens.requires_grad


def _backward(ctx: Any, grad_tokens: Tensor, _: Any) -> dict[str, Tensor]:
    if not ctx.is_needed:
        return {}
    (ids,) = ctx.saved_tensors
    rows = (torch.arange(ids.shape[0], device=ids.device)[:, None], ids)
    return {"final_tokens": grad_tokens.new_zeros(ctx.shape).index_put_(rows, grad_tokens)}


# Of the gather: kept rows get theirs, the others zero; no argument else has one.
GATHER_GRADIENT = Gradient(_save, _backward)


def _check(
    q: Tensor,
    k: Tensor,
    final_tokens: Tensor,
    importance: Tensor | None,
    budget: int,
    top_k: int,
) -> None:
    check_queries_and_keys(q, k)
    check_final_tokens(final_tokens, "k", k)
    check_importance(importance, "k", k)
    checks.require_budget(budget, k.shape[1])
    checks.require_top_k(top_k, k.shape[1])


def _native(
    q: Tensor,
    k: Tensor,
    final_tokens: Tensor,
    importance: Tensor | None,
    budget: int,
    scale: float | None,
    top_k: int,
) -> tuple[Tensor, Tensor]:
    logits = (upcast(q), upcast(k), None, scale_or_default(q, scale))
    return native.select(*logits, final_tokens, importance, budget, top_k)


@op(
    outputs=("tokens", "ids"),
    check=_check,
    fake=fake_kept,
    cpu=_native,
    plain=Upcast(uncast=("final_tokens", "importance")),
    cuda=_native,
    triton="triton",
    unsupported={
        "triton": lambda k, top_k: too_many_tokens(k.shape[1], top_k),
        "cuda": lambda q, k, top_k: too_many_picks(k.shape[1], q.shape[1], top_k),
    },
    autocast=Autocast(no_autocast=("final_tokens",)),
    gradient=GATHER_GRADIENT,
)
def argmax_gather(
    q: Tensor,
    k: Tensor,
    final_tokens: Tensor,
    importance: Tensor | None,
    budget: int,
    scale: float | None = None,
    top_k: int = 1,
) -> tuple[Tensor, Tensor]:
    """Each slot's best tokens, `resolve_picks`, and the gather of their rows, in one.

    Differentiable in ``final_tokens`` alone: ids are decisions.
    Source: arXiv 2511.20439, the authors' ``compress_tokens_by_slots``.

    Args:
        q: ``[B, K, D]`` slot queries, any floating dtype; k: ``[B, N, D]`` token keys, likewise.
        final_tokens: ``[B, N, C]``, what is kept, any dtype; the schema calls them ``final``.
        importance: floating ``[B, N]``, fills the gap where slots pick one token; None: each
            token's highest log-attention over slots.
        budget: T, tokens kept, 1 to N.
        scale: factor of the logits; D^-0.5 if None.
        top_k: tokens that a slot picks, 1 to N.

    Returns:
        tokens ``[B, budget, C]`` in the dtype of ``final_tokens``, and ids int64 ``[B, budget]``,
        ascending and distinct. Scores are in float32 or wider.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit, or the budget is
            not within 1 to N; the message names it.
    """
    scores = log_attention(slot_logits(q, k, scale))
    ids = select_ids(scores, importance, budget, top_k)
    return gather_tokens(final_tokens, ids), ids
