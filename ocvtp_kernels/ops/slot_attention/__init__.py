"""Slot Attention: tokens share themselves among slots, which take weighted means of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.dtypes import acc_dtype, in_autocast, product_dtype
from ocvtp_kernels.ops.arguments import check_queries_and_keys, no_channels
from ocvtp_kernels.ops.registry import Autocast, Gradient, Upcast, composite, op
from ocvtp_kernels.ops.slot_attention import native, reference
from ocvtp_kernels.ops.slot_attention.step import iterate


def check_slot_mask(slot_mask: Tensor, other_name: str, slots: Tensor) -> None:
    """Raises ValueError or TypeError unless it is bool ``[B, K]`` beside ``[B, K, ...]``."""
    checks.require_rank("slot_mask", slot_mask, "B, K")
    checks.require_same_device("slot_mask", slot_mask, other_name, slots)
    checks.require_size("slot_mask", slot_mask, 0, slots.shape[0], other_name)
    checks.require_size("slot_mask", slot_mask, 1, slots.shape[1], other_name)
    if slot_mask.dtype != torch.bool:
        raise TypeError(f"slot_mask: expected dtype torch.bool, got {slot_mask.dtype}")


def _check(q: Tensor, k: Tensor, v: Tensor, slot_mask: Tensor | None) -> None:
    check_queries_and_keys(q, k)
    checks.require_rank("v", v, "B, N, E")
    checks.require_same_dtype_device("v", v, "q", q)
    checks.require_size("v", v, 0, k.shape[0], "k")
    checks.require_size("v", v, 1, k.shape[1], "k")
    if slot_mask is not None:
        check_slot_mask(slot_mask, "q", q)


def _fake(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty((*q.shape[:2], v.shape[2])), q.new_empty(q.shape[:2])


def _no_channels(q: Tensor, v: Tensor) -> str | None:
    return no_channels(q, v)


def _save(
    ctx: Any,
    output: tuple[Tensor, ...],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    eps: float,
    slot_mask: Tensor | None,
) -> None:
    ctx.scale, ctx.eps = scale, eps
    # An output without a gradient must not cost a tensor of zeros, [B, K, N] for the attention.
    ctx.set_materialize_grads(False)
    # A GPU computes the attention again; a CPU would pay more for that than its memory is worth.
    attention = output[2] if q.is_cpu and len(output) == 3 else None
    ctx.save_for_backward(q, k, v, slot_mask, *output[:2], attention)


def _backward(
    ctx: Any,
    grad_updates: Tensor | None,
    grad_mass: Tensor | None,
    grad_attention: Tensor | None = None,
) -> dict[str, Tensor]:
    q, k, v, slot_mask, updates, mass, attention = ctx.saved_tensors
    grad_updates = torch.zeros_like(updates) if grad_updates is None else grad_updates
    grad_mass = torch.zeros_like(mass) if grad_mass is None else grad_mass
    # Gradients that are to be differentiated again are made of plain torch ops.
    differentiable = torch.is_grad_enabled()
    function = slot_attention_backward.reference if differentiable else slot_attention_backward
    outer = (grad_updates, grad_mass, grad_attention, mass, attention)
    grads = function(q, k, v, ctx.scale, ctx.eps, slot_mask, updates, *outer)
    return dict(zip(("q", "k", "v"), grads, strict=True))


def _keeping_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, eps: float, slot_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    return slot_attention_with_attention(q, k, v, scale, eps, slot_mask)[:2]


_UNSUPPORTED = {"triton": _no_channels, "cuda": _no_channels}
_IN_PRODUCT_DTYPE = Upcast(product_dtype, narrow=True)
_GRADIENT = Gradient(_save, _backward, through_plain=True)


@op(
    outputs=("updates", "mass"),
    check=_check,
    fake=_fake,
    cpu=native.slot_attention,
    plain=_IN_PRODUCT_DTYPE,
    cuda=native.slot_attention,
    triton="triton.forward",
    unsupported=_UNSUPPORTED,
    autocast=Autocast(multiplies=True),
    gradient=_GRADIENT._replace(on_cpu=_keeping_attention),
)
def slot_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    eps: float = 1e-5,
    slot_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Each token shares itself among slots, and each slot takes a weighted mean of the tokens.

    ``A = softmax over slots of (scale * q k^T)``; ``mass = sum_n A``;
    ``updates = (A / (mass + eps)) v``. Differentiable in q, k and v.
    Source: Locatello et al., "Object-Centric Learning with Slot Attention" (2020).

    Args:
        q: ``[B, K, D]`` slot queries, any floating dtype.
        k: ``[B, N, D]`` token keys, in the dtype and on the device of ``q``.
        v: ``[B, N, E]`` token values, likewise.
        scale: factor of the logits, D^-0.5 in the paper.
        eps: added to the mass.
        slot_mask: bool ``[B, K]``, False leaves the slot out; every image needs one True.

    Returns:
        updates ``[B, K, E]`` and mass ``[B, K]`` in the dtype of ``q``, summed in float32 or wider.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit; the message names
            it.
    """
    return slot_attention_with_attention.reference(q, k, v, scale, eps, slot_mask)[:2]


@op(
    outputs=("updates", "mass", "attention"),
    check=_check,
    fake=lambda q, k, v: (*_fake(q, v), q.new_empty((*q.shape[:2], k.shape[1]))),
    cpu=native.slot_attention_with_attention,
    plain=_IN_PRODUCT_DTYPE,
    cuda=native.slot_attention_with_attention,
    triton="triton.forward",
    unsupported=_UNSUPPORTED,
    autocast=Autocast(multiplies=True),
    gradient=_GRADIENT,
)
def slot_attention_with_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    eps: float = 1e-5,
    slot_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`slot_attention` that also returns the attention ``A``, with a gradient of its own.

    Source: as `slot_attention`.

    Args:
        q, k, v, scale, eps, slot_mask: as `slot_attention`, of the same shapes and dtypes.

    Returns:
        updates ``[B, K, E]``, mass ``[B, K]`` and attention ``[B, K, N]``, in the dtype of ``q``.

    Raises:
        ValueError, TypeError: as `slot_attention`.
    """
    attention = reference.slot_logits(q, k, scale, slot_mask).softmax(dim=1)
    updates, mass = reference.weighted_mean(attention, v, eps)
    return updates, mass, attention


def _check_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slot_mask: Tensor | None,
    updates: Tensor,
    grad_updates: Tensor,
    grad_mass: Tensor,
    grad_attention: Tensor | None,
    mass: Tensor | None,
    attention: Tensor | None,
) -> None:
    _check(q, k, v, slot_mask)
    by_slot = (*q.shape[:2],)
    by_channel, by_token = (*by_slot, v.shape[2]), (*by_slot, k.shape[1])
    required = {
        "updates": (updates, by_channel),
        "grad_updates": (grad_updates, by_channel),
        "grad_mass": (grad_mass, by_slot),
    }
    optional = {
        "grad_attention": (grad_attention, by_token),
        "mass": (mass, by_slot),
        "attention": (attention, by_token),
    }
    given = {name: (one, shape) for name, (one, shape) in optional.items() if one is not None}
    for name, (tensor, shape) in (required | given).items():
        checks.require_same_dtype_device(name, tensor, "q", q)
        checks.require_shape(name, tensor, shape)


@op(
    outputs=("grad_q", "grad_k", "grad_v"),
    check=_check_backward,
    fake=lambda q, k, v: tuple(t.new_empty(t.shape) for t in (q, k, v)),
    cpu=native.slot_attention_backward,
    triton="triton.backward",
    unsupported=_UNSUPPORTED,
    autocast=Autocast(multiplies=True),
    serves_backward=True,
)
def slot_attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    eps: float,
    slot_mask: Tensor | None,
    updates: Tensor,
    grad_updates: Tensor,
    grad_mass: Tensor,
    grad_attention: Tensor | None,
    mass: Tensor | None = None,
    attention: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `slot_attention` and `slot_attention_with_attention` in closed form.

    With W = A / d and d = mass + eps: ``dA = (dU v^T - delta) / d + dmass + dA_outer`` where
    ``delta_k = dU_k . U_k``; ``dlogit = A (dA - sum_k A dA)``, of the softmax over slots;
    ``dq = scale dlogit k``, ``dk = scale dlogit^T q``, ``dv = W^T dU``.
    Source: the chain rule on the formula of `slot_attention`.

    Args:
        q, k, v, scale, eps, slot_mask: as `slot_attention`, of the same shapes and dtypes.
        updates: ``[B, K, E]``, its result.
        grad_updates: ``[B, K, E]``; grad_mass: ``[B, K]``; grad_attention: ``[B, K, N]`` or None.
        mass: ``[B, K]``, its result, which spares some kernels a pass.
        attention: ``[B, K, N]``, its result, where it was kept; a GPU computes it again.

    Returns:
        gradients of q, k and v in their shapes and dtype, summed in float32 or wider.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit; the message names
            it.
    """
    dtype, wide = q.dtype, acc_dtype(q.dtype)
    q, k, v, updates, grad_updates = (t.to(wide) for t in (q, k, v, updates, grad_updates))
    if attention is None:
        attention = reference.slot_logits(q, k, scale, slot_mask).softmax(dim=1)
    attention = attention.to(wide)
    denominator = attention.sum(dim=-1, keepdim=True) + eps
    grad_scaled = grad_updates / denominator
    delta = (grad_scaled * updates).sum(dim=-1, keepdim=True)
    grad = torch.matmul(grad_scaled, v.transpose(1, 2)) - delta + grad_mass.to(wide).unsqueeze(-1)
    if grad_attention is not None:
        grad = grad + grad_attention.to(wide)
    grad_logits = attention * (grad - (attention * grad).sum(dim=1, keepdim=True))
    grad_q = torch.matmul(grad_logits, k) * scale
    grad_k = torch.matmul(grad_logits.transpose(1, 2), q) * scale
    grad_v = torch.matmul(attention.transpose(1, 2), grad_scaled)
    return grad_q.to(dtype), grad_k.to(dtype), grad_v.to(dtype)


def _check_step(slots: Tensor, k: Tensor, v: Tensor, weights: Sequence[Tensor]) -> None:
    """What the ops it is made of would not name, or not by the names here."""
    fields = reference.StepWeights._fields
    if len(weights) != len(fields):
        raise ValueError(
            f"weights: expected {len(fields)} tensors ({', '.join(fields)}), got {len(weights)}"
        )
    checks.require_rank("slots", slots, "B, K, D")
    checks.require_floating("slots", slots)
    checks.require_nonempty("slots", slots, 1, "slot")
    checks.require_rank("k", k, "B, N, D")
    checks.require_rank("v", v, "B, N, D")
    place = fields.index("ffn_w1")
    checks.require_rank(f"weights[{place}]", weights[place], "F, D")
    dim, hidden = slots.shape[2], weights[place].shape[0]
    shapes: dict[str, tuple[int, ...]] = {
        "norm_q_weight": (dim,),
        "norm_q_bias": (dim,),
        "w_q": (k.shape[2], dim),
        "w_ih": (3 * dim, v.shape[2]),
        "w_hh": (3 * dim, dim),
        "b_ih": (3 * dim,),
        "b_hh": (3 * dim,),
        "norm_ffn_weight": (dim,),
        "norm_ffn_bias": (dim,),
        "ffn_w1": (hidden, dim),
        "ffn_b1": (hidden,),
        "ffn_w2": (dim, hidden),
        "ffn_b2": (dim,),
    }
    # Autocast makes one dtype of several.
    is_cast = in_autocast(slots.device)
    alike = checks.require_same_device if is_cast else checks.require_same_dtype_device
    for place, (field, weight) in enumerate(zip(fields, weights, strict=True)):
        checks.require_tensor(f"weights[{place}]", weight)
        alike(f"weights[{place}]", weight, "slots", slots)
        checks.require_shape(f"weights[{place}]", weight, shapes[field])
    alike("k", k, "slots", slots)
    alike("v", v, "slots", slots)


@composite(
    parts="ocvtp::slot_attention, ocvtp::gru_cell, LayerNorm and Linear",
    reference=reference.slot_attention_step,
)
def slot_attention_step(
    slots: Tensor,
    k: Tensor,
    v: Tensor,
    weights: Sequence[Tensor],
    scale: float,
    eps: float = 1e-5,
    slot_mask: Tensor | None = None,
) -> Tensor:
    """One whole iteration of Slot Attention: norm, query, attention, mean, GRU, norm, FFN.

    ``q = norm(slots) Wq^T``; ``u = slot_attention(q, k, v)``; ``s = GRU(u, slots)``;
    ``s + FFN(norm(s))``. Differentiable in all tensors, those of the list too.
    Source: arXiv 2511.20439, after Locatello et al. (2020).

    Args:
        slots: ``[B, K, D]``, any floating dtype; k, v: ``[B, N, D]`` projected tokens.
        weights: the thirteen tensors of `reference.StepWeights`, in its order.
        scale, eps, slot_mask: as `slot_attention`.

    Returns:
        the new slots ``[B, K, D]``, in their dtype.

    Raises:
        ValueError, TypeError: the list has another length, or an argument does not fit one of the
            ops it is made of.
    """
    _check_step(slots, k, v, weights)
    return iterate(slots, k, v, reference.StepWeights(*weights), scale, eps, slot_mask)[0]
