"""Slot-weighted means of the final tokens, instead of a choice among them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels import backends, checks
from ocvtp_kernels.dtypes import acc_dtype, product_dtype
from ocvtp_kernels.ops.arguments import check_final_tokens, check_queries_and_keys, no_channels
from ocvtp_kernels.ops.registry import Autocast, Gradient, op
from ocvtp_kernels.ops.slot_argmax import scale_or_default
from ocvtp_kernels.ops.slot_attention.reference import slot_logits


def merge_weights(q: Tensor, k: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """The weights of `merge`: ``w_kn / sum_n w_kn`` ``[B, K, N]``, and mass ``[B, K]``."""
    share, assignment = assign_tokens(q, k, scale)
    weights = share.new_zeros((q.shape[0], q.shape[1], k.shape[1]))
    mass = weights.scatter_(1, assignment.unsqueeze(1), share.unsqueeze(1)).sum(dim=-1)
    return weights / mass.clamp_min(torch.finfo(mass.dtype).tiny).unsqueeze(-1), mass


def assign_tokens(q: Tensor, k: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """Each token's largest attention over slots ``[B, N]``, and the slot that has it, int64."""
    share, assignment = slot_logits(q, k, scale).softmax(dim=1).max(dim=1)
    return share, assignment


def _check(q: Tensor, k: Tensor, final_tokens: Tensor) -> None:
    check_queries_and_keys(q, k)
    check_final_tokens(final_tokens, "k", k)
    checks.require_floating("final_tokens", final_tokens)


def _native(
    q: Tensor, k: Tensor, final_tokens: Tensor, scale: float | None
) -> tuple[Tensor, Tensor]:
    scale = scale_or_default(q, scale)
    merged, mass = torch.ops.ocvtp_native.merge(q, k, final_tokens, scale)
    return merged, mass


def _plain(
    q: Tensor, k: Tensor, final_tokens: Tensor, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Slots and weights are those of scores in float32 or wider."""
    wide = acc_dtype(q.dtype)
    weights, mass = merge_weights(q.to(wide), k.to(wide), scale)
    dtype = product_dtype(final_tokens.dtype, final_tokens.device)
    merged = torch.matmul(weights.to(dtype), final_tokens.to(dtype))
    return merged.to(final_tokens.dtype), mass.to(q.dtype)


def _save(
    ctx: Any, output: tuple[Tensor, Tensor], q: Tensor, k: Tensor, scale: float | None
) -> None:
    ctx.scale = scale
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, output[1])


def _backward(ctx: Any, grad: Tensor, _: Any) -> dict[str, Tensor]:
    # The weights come from a hard assignment, which is that of the forward pass.
    q, k, mass = (tensor.detach() for tensor in ctx.saved_tensors)
    dtype = q.dtype if backends.override() == "reference" else acc_dtype(q.dtype)
    share, assignment = assign_tokens(q.to(dtype), k.to(dtype), ctx.scale)
    weight = (share / mass.to(dtype).gather(1, assignment)).to(grad.dtype)
    first = torch.arange(0, mass.numel(), mass.shape[1], device=assignment.device)
    rows = grad.flatten(0, 1).index_select(0, (assignment + first[:, None]).flatten())
    return {"final_tokens": rows.unflatten(0, assignment.shape).mul_(weight.unsqueeze(-1))}


@op(
    outputs=("merged", "mass"),
    check=_check,
    fake=lambda q, final_tokens: (
        final_tokens.new_empty((*q.shape[:2], final_tokens.shape[2])),
        q.new_empty(q.shape[:2]),
    ),
    cpu=_native,
    plain=_plain,
    triton="triton",
    unsupported={"triton": lambda q, final_tokens: no_channels(q, final_tokens)},
    autocast=Autocast(no_autocast=("final_tokens",)),
    gradient=Gradient(_save, _backward),
)
def merge(
    q: Tensor, k: Tensor, final_tokens: Tensor, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Slot-weighted means of the final tokens.

    Each token belongs to its argmax slot alone, ties to the lowest slot, with
    ``A = softmax over slots of (scale * q k^T)``:
    ``w_kn = A_kn if k = argmax_k A_kn else 0``, ``merged_k = sum_n w_kn final_n / sum_n w_kn``.
    A slot without a token returns zeros and mass 0, where the authors divide by zero.
    Differentiable in ``final_tokens`` alone. Source: the authors' ``OCL_MODE=merging``.

    Args:
        q: ``[B, K, D]`` slot queries, any floating dtype; k: ``[B, N, D]`` token keys, likewise.
        final_tokens: ``[B, N, C]``, any floating dtype; the schema calls them ``final``.
        scale: factor of the logits; D^-0.5 if None.

    Returns:
        merged ``[B, K, C]`` in the dtype of ``final_tokens``, and mass ``[B, K]``, ``sum_n w_kn``,
        in that of ``q``. Scores and sums are in float32 or wider.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit; the message names
            it.
    """
    weights, mass = merge_weights(q, k, scale)
    return torch.matmul(weights.to(final_tokens.dtype), final_tokens), mass
