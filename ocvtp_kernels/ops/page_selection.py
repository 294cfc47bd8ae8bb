"""Ops of the selection stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels import backends, checks
from ocvtp_kernels.dtypes import accumulate_dtype
from ocvtp_kernels.native import if_built
from ocvtp_kernels.ops.argmax_gather import cpu, native, reference
from ocvtp_kernels.ops.page_slots import check_queries_and_keys, refuse_no_channels
from ocvtp_kernels.ops.registry import Autocast, Gradient, define, lazy
from ocvtp_kernels.ops.resolve_picks.tiles import MAX_RANKS, MAX_TOKENS


def refuse_selection(num_tokens: int, top_k: int) -> str | None:
    """The sentence why the GPU selections cannot hold as many tokens, or None."""
    if num_tokens > MAX_TOKENS:
        return f"the GPU selection holds at most {MAX_TOKENS} tokens an image, not {num_tokens}"
    if num_tokens * top_k >= MAX_RANKS:
        return f"the GPU selection ranks fewer than 2^30 picks, not {num_tokens * top_k}"
    return None


def refuse_cuda(num_tokens: int, num_slots: int, top_k: int) -> str | None:
    """As `refuse_selection`, for the CUDA C++ kernels, which also bound the picks."""
    if num_slots * top_k > native.MOST_PICKS:
        picks = num_slots * top_k
        return f"the cuda selection takes at most {native.MOST_PICKS} picks an image, not {picks}"
    return refuse_selection(num_tokens, top_k)


def check_importance(importance: Tensor | None, owner: str, like: Tensor) -> None:
    """Importance, where given, is ``[B, N]``, floating, beside ``like`` ``[B, N, ...]``."""
    if importance is None:
        return
    checks.require_rank("importance", importance, "B, N")
    checks.require_floating("importance", importance)
    checks.require_same_device("importance", importance, owner, like)
    checks.require_size("importance", importance, 0, like.shape[0], owner)
    checks.require_size("importance", importance, 1, like.shape[1], owner)


def _check_slot_argmax(q: Tensor, k: Tensor, scale: float | None = None) -> None:
    check_queries_and_keys(q, k)


define(
    "slot_argmax(Tensor q, Tensor k, float? scale=None) -> (Tensor ids, Tensor peak)",
    check=_check_slot_argmax,
    fake=lambda q, *_: (q.new_empty(q.shape[:2], dtype=torch.int64), q.new_empty(q.shape[:2])),
    kernels={
        "reference": reference.slot_argmax,
        "cpu": if_built(native.slot_argmax, cpu.slot_argmax),
        "triton": lazy("ops.slot_argmax.triton", "slot_argmax"),
        "cuda": native.slot_argmax,
    },
)


def _check_resolve_picks(
    picks: Tensor,
    peak: Tensor,
    importance: Tensor | None,
    budget: int,
    num_tokens: int | None = None,
) -> None:
    if picks.dim() not in (2, 3):
        raise ValueError(f"picks: expected shape [B, K] or [B, K, top_k], got {list(picks.shape)}")
    if picks.dtype != torch.int64:
        raise TypeError(f"picks: expected dtype torch.int64, got {picks.dtype}")
    checks.require_rank("peak", peak, "B, K")
    checks.require_floating("peak", peak)
    checks.require_same_device("peak", peak, "picks", picks)
    checks.require_size("peak", peak, 0, picks.shape[0], "picks")
    checks.require_size("peak", peak, 1, picks.shape[1], "picks")
    if importance is not None:
        checks.require_rank("importance", importance, "B, N")
        checks.require_floating("importance", importance)
        checks.require_same_device("importance", importance, "picks", picks)
        checks.require_size("importance", importance, 0, picks.shape[0], "picks")
        if num_tokens is not None:
            checks.require_size("importance", importance, 1, num_tokens, "num_tokens")
        num_tokens = importance.shape[1]
    if num_tokens is None:
        raise ValueError("num_tokens: expected the number of tokens, as importance is None")
    checks.require_budget(budget, num_tokens)


def _fake_resolve_picks(
    picks: Tensor, peak: Tensor, importance: Tensor | None, budget: int, *_: Any
) -> Tensor:
    return picks.new_empty((picks.shape[0], budget))


def _refuse_resolve_picks(
    picks: Tensor,
    peak: Tensor,
    importance: Tensor | None,
    budget: int,
    num_tokens: int | None = None,
) -> str | None:
    tokens = num_tokens if importance is None else importance.shape[1]
    return refuse_selection(tokens or 0, picks.shape[2] if picks.dim() == 3 else 1)


def _refuse_resolve_picks_cuda(picks: Tensor, *rest: Any) -> str | None:
    top_k = picks.shape[2] if picks.dim() == 3 else 1
    return refuse_cuda(0, picks.shape[1], top_k) or _refuse_resolve_picks(picks, *rest)


define(
    "resolve_picks(Tensor picks, Tensor peak, Tensor? importance, SymInt budget,"
    " SymInt? num_tokens=None) -> Tensor",
    check=_check_resolve_picks,
    fake=_fake_resolve_picks,
    kernels={
        "reference": reference.resolve_picks,
        # Integers alone, and no loop: there is nothing to accumulate wider on the CPU.
        "cpu": if_built(native.resolve_picks, reference.resolve_picks),
        "triton": lazy("ops.resolve_picks.triton", "resolve_picks"),
        "cuda": native.resolve_picks,
    },
    refuse={"triton": _refuse_resolve_picks, "cuda": _refuse_resolve_picks_cuda},
)


def check_final(name: str, final: Tensor, owner: str, like: Tensor) -> None:
    """Final tokens ``[B, N, C]`` stand row for row beside ``like`` ``[B, N, ...]`` (``owner``).

    Any dtype: rows are only copied.
    """
    checks.require_rank(name, final, "B, N, C")
    checks.require_same_device(name, final, owner, like)
    checks.require_size(name, final, 0, like.shape[0], owner)
    checks.require_size(name, final, 1, like.shape[1], owner)


def _check_argmax_gather(
    q: Tensor,
    k: Tensor,
    final: Tensor,
    importance: Tensor | None,
    budget: int,
    scale: float | None = None,
    top_k: int = 1,
) -> None:
    check_queries_and_keys(q, k)
    check_final("final", final, "k", k)
    check_importance(importance, "k", k)
    checks.require_budget(budget, k.shape[1])
    checks.require_top_k(top_k, k.shape[1])


def _refuse_argmax_gather(q: Tensor, k: Tensor, *rest: Any) -> str | None:
    return refuse_selection(k.shape[1], rest[4] if len(rest) > 4 else 1)


def _refuse_argmax_gather_cuda(q: Tensor, k: Tensor, *rest: Any) -> str | None:
    return refuse_cuda(k.shape[1], q.shape[1], rest[4] if len(rest) > 4 else 1)


def fake_kept(final: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """The shapes of kept tokens ``[B, T, C]`` and ids ``[B, T]``."""
    batch, _, width = final.shape
    tokens = final.new_empty((batch, budget, width))
    return tokens, final.new_empty((batch, budget), dtype=torch.int64)


def kept_gradient(final: int) -> Gradient:
    """The gradient of the gather: kept rows get theirs, the others zero; no input else has one.

    Args:
        final: the place of the final tokens among the op's inputs.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.shape, ctx.inputs = inputs[final].shape, len(inputs)

    def backward(ctx: Any, grad_tokens: Tensor, _: Any) -> tuple[Any, ...]:
        (ids,) = ctx.saved_tensors
        rows = (torch.arange(len(ids), device=ids.device)[:, None], ids)
        grads: list[Tensor | None] = [None] * ctx.inputs
        grads[final] = grad_tokens.new_zeros(ctx.shape).index_put_(rows, grad_tokens)
        return tuple(grads)

    return Gradient(save, backward)


define(
    "argmax_gather(Tensor q, Tensor k, Tensor final, Tensor? importance, SymInt budget,"
    " float? scale=None, SymInt top_k=1) -> (Tensor tokens, Tensor ids)",
    check=_check_argmax_gather,
    fake=lambda q, k, final, importance, budget, *_: fake_kept(final, budget),
    kernels={
        "reference": reference.argmax_gather,
        "cpu": if_built(native.argmax_gather, cpu.argmax_gather),
        "triton": lazy("ops.argmax_gather.triton", "argmax_gather"),
        "cuda": native.argmax_gather,
    },
    refuse={"triton": _refuse_argmax_gather, "cuda": _refuse_argmax_gather_cuda},
    autocast=Autocast(keep=("final",)),
    gradient=kept_gradient(final=2),
)


def _check_merge(q: Tensor, k: Tensor, final: Tensor, scale: float | None = None) -> None:
    check_queries_and_keys(q, k)
    check_final("final", final, "k", k)
    checks.require_floating("final", final)


def _fake_merge(q: Tensor, k: Tensor, final: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return final.new_empty((*q.shape[:2], final.shape[2])), q.new_empty(q.shape[:2])


def _save_merge(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, _, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, output[1])


def _merge_backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    # In final alone: the weights come from a hard assignment, which is that of the forward pass.
    q, k, mass = (tensor.detach() for tensor in ctx.saved_tensors)
    dtype = q.dtype if backends.forced() == "reference" else accumulate_dtype(q.dtype)
    share, owner = reference.slot_owners(q.to(dtype), k.to(dtype), ctx.scale)
    weight = (share / mass.to(dtype).gather(1, owner)).to(grad.dtype)
    first = torch.arange(0, mass.numel(), mass.shape[1], device=owner.device)
    rows = grad.flatten(0, 1).index_select(0, (owner + first[:, None]).flatten())
    return None, None, rows.unflatten(0, owner.shape).mul_(weight.unsqueeze(-1)), None


define(
    "merge(Tensor q, Tensor k, Tensor final, float? scale=None) -> (Tensor merged, Tensor mass)",
    check=_check_merge,
    fake=_fake_merge,
    kernels={
        "reference": reference.merge,
        "cpu": if_built(native.merge, cpu.merge),
        "triton": lazy("ops.merge.triton", "merge"),
    },
    refuse={"triton": refuse_no_channels},
    autocast=Autocast(keep=("final",)),
    gradient=Gradient(save=_save_merge, backward=_merge_backward),
)
