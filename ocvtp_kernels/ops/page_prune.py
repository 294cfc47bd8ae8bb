"""The headline op: reference tokens in, kept final tokens out; and its half without importance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.dtypes import accumulate_dtype
from ocvtp_kernels.native import if_built
from ocvtp_kernels.ops.page_selection import (
    check_final,
    check_importance,
    fake_kept,
    kept_gradient,
    refuse_cuda,
    refuse_selection,
)
from ocvtp_kernels.ops.prune import reference as chain
from ocvtp_kernels.ops.prune.native.pipeline import picks_native, prepared_in, prune_native
from ocvtp_kernels.ops.prune.weights import unpack
from ocvtp_kernels.ops.registry import Autocast, define, lazy
from ocvtp_kernels.ops.slot_attention.native import MOST_WIDTH


def _check(
    reference: Tensor,
    final: Tensor,
    weights: Sequence[Tensor],
    slots_init: Tensor,
    importance: Tensor | None,
    budget: int,
    top_k: int = 1,
) -> None:
    _check_picks(reference, weights, slots_init, top_k)
    check_final("final", final, "reference", reference)
    check_importance(importance, "reference", reference)
    checks.require_budget(budget, reference.shape[1])


def _check_picks(
    reference: Tensor, weights: Sequence[Tensor], slots_init: Tensor, top_k: int = 1
) -> None:
    folded = unpack(weights)
    checks.require_rank("reference", reference, "B, N, C")
    checks.require_floating("reference", reference)
    checks.require_some("reference", reference, 1, "token")
    checks.require_size("reference", reference, 2, folded.encode_weights[0].shape[1], "weights")
    checks.require_same_kind("reference", reference, "weights", weights[0])
    checks.require_rank("slots_init", slots_init, "B, K, D")
    checks.require_same_kind("slots_init", slots_init, "reference", reference)
    checks.require_size("slots_init", slots_init, 0, reference.shape[0], "reference")
    checks.require_size("slots_init", slots_init, 2, folded.slots.dim, "weights")
    checks.require_some("slots_init", slots_init, 1, "slot")
    checks.require_top_k(top_k, reference.shape[1])


def _refuse(reference: Tensor, *rest: Any) -> str | None:
    return refuse_selection(reference.shape[1], rest[5] if len(rest) > 5 else 1)


def _refuse_cuda(
    reference: Tensor, final: Tensor, weights: Sequence[Tensor], slots_init: Tensor, *rest: Any
) -> str | None:
    return _refuse_picks_cuda(reference, weights, slots_init, *rest[2:])


def _refuse_picks(
    reference: Tensor, weights: Sequence[Tensor], slots_init: Tensor, top_k: int = 1
) -> str | None:
    return refuse_selection(reference.shape[1], top_k)


def _refuse_picks_cuda(
    reference: Tensor, weights: Sequence[Tensor], slots_init: Tensor, top_k: int = 1
) -> str | None:
    _, num_slots, width = slots_init.shape
    if width > MOST_WIDTH:
        return f"the cuda backend takes slots of at most {MOST_WIDTH} channels, not {width}"
    return refuse_cuda(reference.shape[1], num_slots, top_k)


def _fake_picks(
    reference: Tensor, weights: Sequence[Tensor], slots_init: Tensor, top_k: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    by_slot = slots_init.shape[:2]
    wide = accumulate_dtype(reference.dtype)
    return (
        slots_init.new_empty((*by_slot, top_k), dtype=torch.int64),
        slots_init.new_empty(by_slot, dtype=wide),
        reference.new_empty(reference.shape[:2], dtype=wide),
    )


define(
    "prune(Tensor reference, Tensor final, Tensor[] weights, Tensor slots_init,"
    " Tensor? importance, SymInt budget, SymInt top_k=1) -> (Tensor tokens, Tensor ids)",
    check=_check,
    fake=lambda reference, final, weights, slots_init, importance, budget, *_: fake_kept(
        final, budget
    ),
    kernels={
        "reference": chain.prune_reference,
        "cpu": if_built(prune_native, chain.prune_cpu),
        "triton": lazy("ops.prune.triton.pipeline", "prune"),
        "cuda": prune_native,
    },
    refuse={"triton": _refuse, "cuda": _refuse_cuda},
    autocast=Autocast(multiplies=True, keep=("final", "importance"), cast={"weights": prepared_in}),
    gradient=kept_gradient(final=1),
)

define(
    "prune_picks(Tensor reference, Tensor[] weights, Tensor slots_init, SymInt top_k=1)"
    " -> (Tensor picks, Tensor peak, Tensor evidence)",
    check=_check_picks,
    fake=_fake_picks,
    kernels={
        "reference": chain.picks_reference,
        "cpu": if_built(picks_native, chain.picks_cpu),
        "triton": lazy("ops.prune.triton.pipeline", "prune_picks"),
        "cuda": picks_native,
    },
    refuse={"triton": _refuse_picks, "cuda": _refuse_picks_cuda},
    autocast=Autocast(multiplies=True, cast={"weights": prepared_in}),
)
