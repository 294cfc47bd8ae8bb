"""The headline op: reference tokens in, kept final tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ocvtp_kernels import chain, checks
from ocvtp_kernels.chain_native import prune_native
from ocvtp_kernels.fold import unpack
from ocvtp_kernels.native import if_built
from ocvtp_kernels.ops.library import define, lazy
from ocvtp_kernels.ops.selection import (
    check_final,
    check_importance,
    fake_kept,
    kept_gradient,
    refuse_cuda,
    refuse_selection,
)
from ocvtp_kernels.slots.native import MOST_WIDTH


def _check(
    reference: Tensor,
    final: Tensor,
    weights: Sequence[Tensor],
    slots_init: Tensor,
    importance: Tensor | None,
    budget: int,
    top_k: int = 1,
) -> None:
    folded = unpack(weights)
    checks.require_rank("reference", reference, "B, N, C")
    checks.require_floating("reference", reference)
    checks.require_some("reference", reference, 1, "token")
    checks.require_size("reference", reference, 2, folded.encode_weights[0].shape[1], "weights")
    checks.require_same_kind("reference", reference, "weights", folded.slots.query_weight)
    check_final("final", final, "reference", reference)
    checks.require_rank("slots_init", slots_init, "B, K, D")
    checks.require_same_kind("slots_init", slots_init, "reference", reference)
    checks.require_size("slots_init", slots_init, 0, reference.shape[0], "reference")
    checks.require_size("slots_init", slots_init, 2, folded.slots.query_weight.shape[1], "weights")
    checks.require_some("slots_init", slots_init, 1, "slot")
    check_importance(importance, "reference", reference)
    checks.require_budget(budget, reference.shape[1])
    checks.require_top_k(top_k, reference.shape[1])


def _refuse(reference: Tensor, *rest: Any) -> str | None:
    return refuse_selection(reference.shape[1], rest[5] if len(rest) > 5 else 1)


def _refuse_cuda(
    reference: Tensor, final: Tensor, weights: Sequence[Tensor], slots_init: Tensor, *rest: Any
) -> str | None:
    _, num_slots, width = slots_init.shape
    if width > MOST_WIDTH:
        return f"the cuda backend takes slots of at most {MOST_WIDTH} channels, not {width}"
    return refuse_cuda(reference.shape[1], num_slots, rest[2] if len(rest) > 2 else 1)


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
        "triton": lazy("chain_triton", "prune_triton"),
        "cuda": prune_native,
    },
    refuse={"triton": _refuse, "cuda": _refuse_cuda},
    keep=("final",),
    gradient=kept_gradient(final=1),
)
