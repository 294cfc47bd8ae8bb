"""The whole way on folded weights, encode to gather: what ``ocvtp::prune`` runs.

``ocvtp::prune_picks`` is its first half, for callers that know importance only later.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ocvtp_kernels.dtypes import accumulate_dtype, product_dtype
from ocvtp_kernels.ops.argmax_gather.reference import gather_tokens, select_ids, slot_picks
from ocvtp_kernels.ops.prune.folded_encode import encode_folded
from ocvtp_kernels.ops.prune.folded_slots import folded_attention_logits
from ocvtp_kernels.ops.prune.weights import unpack
from ocvtp_kernels.ops.slot_attention.reference import log_attention


def attention_logits(
    reference: Tensor,
    weights: Sequence[Tensor],
    slots_init: Tensor,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The last iteration's logits.

    Args:
        reference: reference tokens ``[B, N, C]``.
        weights: the list of `ocvtp_kernels.pruner.fold.Folded.pack`.
        slots_init: ``[B, K, D]``.
        dtype: of the logits; that of ``reference`` if None.

    Returns:
        ``[B, K, N]``; its softmax over slots is the attention.
    """
    folded = unpack(weights)
    x_hat = encode_folded(reference, folded)
    return folded_attention_logits(slots_init, x_hat, folded.slots, folded.num_iter, dtype)


def prune_reference(
    reference: Tensor,
    final: Tensor,
    weights: Sequence[Tensor],
    slots_init: Tensor,
    importance: Tensor | None,
    budget: int,
    top_k: int = 1,
) -> tuple[Tensor, Tensor]:
    """Reference tokens to kept final tokens, computed in the dtype given: the kernels' oracle.

    Source: arXiv 2511.20439; the folding is in `ocvtp_kernels.pruner.fold`.

    Args:
        reference: ``[B, N, C_in]``; final: ``[B, N, C]``, any dtype.
        weights: the list of `ocvtp_kernels.pruner.fold.Folded.pack`, in the dtype of ``reference``.
        slots_init: ``[B, K, D]``, in the dtype of ``reference``.
        importance: ``[B, N]`` padding score, or None for the slots' own evidence.
        budget: T; top_k: picks a slot.

    Returns:
        tokens ``[B, T, C]`` and ids int64 ``[B, T]`` ascending.
    """
    scores = log_attention(attention_logits(reference, weights, slots_init))
    ids = select_ids(scores, importance, budget, top_k)
    return gather_tokens(final, ids), ids


def prune_cpu(
    reference: Tensor,
    final: Tensor,
    weights: Sequence[Tensor],
    slots_init: Tensor,
    importance: Tensor | None,
    budget: int,
    top_k: int = 1,
) -> tuple[Tensor, Tensor]:
    """`prune_reference` in what the CPU multiplies, its scores in float32 or wider."""
    scores = _scores(reference, weights, slots_init)
    ids = select_ids(scores, importance, budget, top_k)
    return gather_tokens(final, ids), ids


def picks_reference(
    reference: Tensor, weights: Sequence[Tensor], slots_init: Tensor, top_k: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """`prune_reference` up to what `resolve_picks` takes, computed in the dtype given.

    Args:
        reference: ``[B, N, C_in]``; weights, slots_init, top_k: as `prune_reference`.

    Returns:
        picks int64 ``[B, K, top_k]``, a slot's best first; peak ``[B, K]``, each slot's highest
        log-attention; evidence ``[B, N]``, each token's highest over slots, which pads where there
        is no importance. Floats in float32 or wider.
    """
    scores = log_attention(attention_logits(reference, weights, slots_init))
    return _picks(scores, top_k)


def picks_cpu(
    reference: Tensor, weights: Sequence[Tensor], slots_init: Tensor, top_k: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """`picks_reference` in what the CPU multiplies, its scores in float32 or wider."""
    return _picks(_scores(reference, weights, slots_init), top_k)


def _scores(reference: Tensor, weights: Sequence[Tensor], slots_init: Tensor) -> Tensor:
    """The log-attention ``[B, K, N]`` in float32 or wider: that of half precision would tie."""
    dtype, wide = reference.dtype, accumulate_dtype(reference.dtype)
    multiplied = product_dtype(dtype, reference.device)
    logits = attention_logits(
        reference.to(multiplied),
        [weight.to(multiplied) for weight in weights],
        slots_init.to(multiplied),
        wide,
    )
    return log_attention(logits)


def _picks(scores: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    picks, peak = slot_picks(scores, top_k)
    wide = accumulate_dtype(scores.dtype)
    return picks, peak.to(wide), scores.amax(dim=1).to(wide)
