"""The headline op: reference tokens in, kept final tokens out; and its half without importance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.dtypes import acc_dtype
from ocvtp_kernels.ops.argmax_gather import GATHER_GRADIENT, fake_kept, gather_tokens, select_ids
from ocvtp_kernels.ops.arguments import (
    check_final_tokens,
    check_importance,
    too_many_picks,
    too_many_tokens,
)
from ocvtp_kernels.ops.prune import reference
from ocvtp_kernels.ops.prune.native import pipeline as native
from ocvtp_kernels.ops.prune.weights import unpack
from ocvtp_kernels.ops.registry import Autocast, op
from ocvtp_kernels.ops.slot_argmax import slot_topk

# Of a slot, on the cuda backend: its new state waits in shared memory for its LayerNorm.
MAX_WIDTH = 8192


def _check_picks(
    reference_tokens: Tensor, weights: Sequence[Tensor], slots_init: Tensor, top_k: int
) -> None:
    folded = unpack(weights)
    checks.require_rank("reference_tokens", reference_tokens, "B, N, C")
    checks.require_floating("reference_tokens", reference_tokens)
    checks.require_nonempty("reference_tokens", reference_tokens, 1, "token")
    width = folded.encode_weights[0].shape[1]
    checks.require_size("reference_tokens", reference_tokens, 2, width, "weights")
    checks.require_same_dtype_device("reference_tokens", reference_tokens, "weights", weights[0])
    checks.require_rank("slots_init", slots_init, "B, K, D")
    checks.require_same_dtype_device("slots_init", slots_init, "reference_tokens", reference_tokens)
    checks.require_size("slots_init", slots_init, 0, reference_tokens.shape[0], "reference_tokens")
    checks.require_size("slots_init", slots_init, 2, folded.slots.dim, "weights")
    checks.require_nonempty("slots_init", slots_init, 1, "slot")
    checks.require_top_k(top_k, reference_tokens.shape[1])


def _check(
    reference_tokens: Tensor,
    final_tokens: Tensor,
    weights: Sequence[Tensor],
    slots_init: Tensor,
    importance: Tensor | None,
    budget: int,
    top_k: int,
) -> None:
    _check_picks(reference_tokens, weights, slots_init, top_k)
    check_final_tokens(final_tokens, "reference_tokens", reference_tokens)
    check_importance(importance, "reference_tokens", reference_tokens)
    checks.require_budget(budget, reference_tokens.shape[1])


def _too_many_tokens(reference_tokens: Tensor, top_k: int) -> str | None:
    return too_many_tokens(reference_tokens.shape[1], top_k)


def _beyond_cuda(reference_tokens: Tensor, slots_init: Tensor, top_k: int) -> str | None:
    _, num_slots, width = slots_init.shape
    if width > MAX_WIDTH:
        return f"the cuda backend takes slots of at most {MAX_WIDTH} channels, not {width}"
    return too_many_picks(reference_tokens.shape[1], num_slots, top_k)


_UNSUPPORTED: dict[str, Callable[..., str | None]] = {
    "triton": _too_many_tokens,
    "cuda": _beyond_cuda,
}


def _plain(
    reference_tokens: Tensor,
    final_tokens: Tensor,
    weights: Sequence[Tensor],
    slots_init: Tensor,
    importance: Tensor | None,
    budget: int,
    top_k: int,
) -> tuple[Tensor, Tensor]:
    scores = reference.upcast_log_attention_of(reference_tokens, weights, slots_init)
    return _select(scores, final_tokens, importance, budget, top_k)


def _select(
    scores: Tensor, final_tokens: Tensor, importance: Tensor | None, budget: int, top_k: int
) -> tuple[Tensor, Tensor]:
    ids = select_ids(scores, importance, budget, top_k)
    return gather_tokens(final_tokens, ids), ids


@op(
    outputs=("tokens", "ids"),
    check=_check,
    fake=fake_kept,
    cpu=native.prune,
    plain=_plain,
    cuda=native.prune,
    triton="triton.pipeline",
    unsupported=_UNSUPPORTED,
    autocast=Autocast(
        multiplies=True,
        no_autocast=("final_tokens", "importance"),
        cast={"weights": native.prepared_in},
    ),
    gradient=GATHER_GRADIENT,
)
def prune(
    reference_tokens: Tensor,
    final_tokens: Tensor,
    weights: Sequence[Tensor],
    slots_init: Tensor,
    importance: Tensor | None,
    budget: int,
    top_k: int = 1,
) -> tuple[Tensor, Tensor]:
    """Keeps the ``budget`` final tokens of each image that a Slot-Attention pruner picks.

    Encodes the reference tokens, runs the pruner's iterations of Slot Attention on them, takes
    each slot's best tokens by the last attention, makes them exactly ``budget`` distinct ids
    (`resolve_picks`) and gathers their rows. Differentiable in ``final_tokens`` alone: ids are
    decisions. Source: arXiv 2511.20439; weights are folded by exact identities, see
    `ocvtp_kernels.pruner.fold`.

    Args:
        reference_tokens: ``[B, N, C_in]``, what the decision is made on (an early layer of the
            vision encoder, CLS removed), any floating dtype; the schema calls them ``reference``.
        final_tokens: ``[B, N, C]``, what is kept, any dtype; the schema calls them ``final``.
        weights: the list that ``OCPruner.packed()`` returns, in the dtype and on the device of
            ``reference_tokens``. `ocvtp_kernels.prepare` makes one that is faster to use again.
        slots_init: ``[B, K, D]`` initial slots, in the same dtype and on the same device.
        importance: floating ``[B, N]``, fills the gap where slots pick one token; None: each
            token's highest log-attention over slots.
        budget: T, tokens kept, 1 to N.
        top_k: tokens that a slot picks, 1 to N.

    Returns:
        tokens ``[B, T, C]`` in the dtype of ``final_tokens``, and ids int64 ``[B, T]``, ascending
        and distinct. With more distinct picks than the budget, the slots with the smallest peak
        attention lose theirs. Ties go to the lowest id; NaN never beats a number. Sums and slots
        are in float32 or wider, whatever the dtype.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit, the list is not
            one of `OCPruner.packed`, or the budget is not within 1 to N; the message names it.

    Examples:
        >>> pruner = ocvtp_kernels.OCPruner(ocvtp_kernels.PrunerConfig())
        >>> slots = pruner.sample_slots(8, 64)
        >>> tokens, ids = ocvtp_kernels.ops.prune(
        ...     reference_tokens, final_tokens, pruner.packed(), slots, None, budget=64
        ... )
    """
    scores = reference.log_attention_of(reference_tokens, weights, slots_init)
    return _select(scores, final_tokens, importance, budget, top_k)


def _fake_picks(
    reference_tokens: Tensor, slots_init: Tensor, top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    by_slot, wide = slots_init.shape[:2], acc_dtype(reference_tokens.dtype)
    return (
        slots_init.new_empty((*by_slot, top_k), dtype=torch.int64),
        slots_init.new_empty(by_slot, dtype=wide),
        reference_tokens.new_empty(reference_tokens.shape[:2], dtype=wide),
    )


def _plain_picks(
    reference_tokens: Tensor, weights: Sequence[Tensor], slots_init: Tensor, top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _picks(reference.upcast_log_attention_of(reference_tokens, weights, slots_init), top_k)


def _picks(scores: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    topk_ids, max_logprob = slot_topk(scores, top_k)
    wide = acc_dtype(scores.dtype)
    return topk_ids, max_logprob.to(wide), scores.amax(dim=1).to(wide)


@op(
    outputs=("topk_ids", "max_logprob", "token_score"),
    check=_check_picks,
    fake=_fake_picks,
    cpu=native.prune_picks,
    plain=_plain_picks,
    cuda=native.prune_picks,
    triton="triton.pipeline",
    unsupported=_UNSUPPORTED,
    autocast=Autocast(multiplies=True, cast={"weights": native.prepared_in}),
)
def prune_picks(
    reference_tokens: Tensor,
    weights: Sequence[Tensor],
    slots_init: Tensor,
    top_k: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """The half of `prune` that needs no importance: what `resolve_picks` takes.

    For callers that know importance only later. Source: as `prune`.

    Args:
        reference_tokens, weights, slots_init, top_k: as `prune`, of the same shapes and dtypes.

    Returns:
        topk_ids int64 ``[B, K, top_k]``, a slot's best first; max_logprob ``[B, K]``, each slot's
        largest log-attention; token_score ``[B, N]``, each token's largest over slots, which fills
        gaps where there is no importance. Floats in float32 or wider. The schema calls them
        ``picks``, ``peak`` and ``evidence``.

    Raises:
        ValueError, TypeError: as `prune`.
    """
    return _picks(reference.log_attention_of(reference_tokens, weights, slots_init), top_k)
