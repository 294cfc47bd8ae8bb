"""Ops of the slots stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.native import if_built
from ocvtp_kernels.ops.gru_cell import kept_gates as gru_cpu
from ocvtp_kernels.ops.registry import Autocast, Gradient, compose, define, lazy
from ocvtp_kernels.ops.slot_attention import cpu, gradients, native, reference
from ocvtp_kernels.ops.slot_attention.step import iterate

_ARGUMENTS = "(Tensor q, Tensor k, Tensor v, float scale, float eps=1e-05, Tensor? slot_mask=None)"
_GRU_ARGUMENTS = "Tensor x, Tensor h, Tensor w_ih, Tensor w_hh, Tensor b_ih, Tensor b_hh"


def check_queries_and_keys(q: Tensor, k: Tensor) -> None:
    """Queries ``[B, K, D]`` and keys ``[B, N, D]`` of one kind, one slot and token at least."""
    checks.require_rank("q", q, "B, K, D")
    checks.require_rank("k", k, "B, N, D")
    checks.require_floating("q", q)
    checks.require_same_kind("k", k, "q", q)
    checks.require_size("k", k, 0, q.shape[0], "q")
    checks.require_size("k", k, 2, q.shape[2], "q")
    checks.require_some("q", q, 1, "slot")
    checks.require_some("k", k, 1, "token")


def refuse_no_channels(q: Tensor, k: Tensor, values: Tensor, *_: Any) -> str | None:
    """The sentence why GPU kernels do not take rows without a channel, or None."""
    if min(q.shape[2], values.shape[2]) > 0:
        return None
    return f"the GPU kernels take at least one channel, not {q.shape[2]} and {values.shape[2]}"


_REFUSE = {"triton": refuse_no_channels, "cuda": refuse_no_channels}


def _check_slot_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    eps: float = 1e-5,
    slot_mask: Tensor | None = None,
) -> None:
    check_queries_and_keys(q, k)
    checks.require_rank("v", v, "B, N, E")
    checks.require_same_kind("v", v, "q", q)
    checks.require_size("v", v, 0, k.shape[0], "k")
    checks.require_size("v", v, 1, k.shape[1], "k")
    if slot_mask is not None:
        checks.require_rank("slot_mask", slot_mask, "B, K")
        checks.require_same_device("slot_mask", slot_mask, "q", q)
        checks.require_size("slot_mask", slot_mask, 0, q.shape[0], "q")
        checks.require_size("slot_mask", slot_mask, 1, q.shape[1], "q")
        if slot_mask.dtype != torch.bool:
            raise TypeError(f"slot_mask: expected dtype torch.bool, got {slot_mask.dtype}")


def _fake_slot_attention(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch, num_slots, _dim = q.shape
    return q.new_empty((batch, num_slots, v.shape[2])), q.new_empty((batch, num_slots))


def _fake_with_attention(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return *_fake_slot_attention(q, k, v), q.new_empty((q.shape[0], q.shape[1], k.shape[1]))


def _reference_slot_attention(*args: Any) -> tuple[Tensor, Tensor]:
    return reference.slot_attention(*args)[:2]


def _save_slot_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, ctx.scale, ctx.eps, slot_mask = inputs
    # An output without a gradient must not cost a tensor of zeros, [B, K, N] for the attention.
    ctx.set_materialize_grads(False)
    # A GPU makes the attention again; a CPU would pay more for that than its memory is worth.
    attention = output[2] if q.is_cpu and len(output) == 3 else None
    ctx.save_for_backward(q, k, v, slot_mask, *output[:2], attention)


def _slot_attention_backward(
    ctx: Any,
    grad_updates: Tensor | None,
    grad_mass: Tensor | None,
    grad_attention: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    q, k, v, slot_mask, updates, mass, attention = ctx.saved_tensors
    grad_updates = torch.zeros_like(updates) if grad_updates is None else grad_updates
    grad_mass = torch.zeros_like(mass) if grad_mass is None else grad_mass
    # Where the gradients are to be differentiated again, they are made of plain torch ops.
    gradients_of = (
        gradients.slot_attention_gradients
        if torch.is_grad_enabled()
        else torch.ops.ocvtp.slot_attention_backward
    )
    given = (grad_updates, grad_mass, grad_attention, mass, attention)
    grads = gradients_of(q, k, v, ctx.scale, ctx.eps, slot_mask, updates, *given)
    return *grads, None, None, None


def _check_slot_attention_backward(
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
) -> None:
    _check_slot_attention(q, k, v, scale, eps, slot_mask)
    by_slot = (*q.shape[:2],)
    shapes = {
        "updates": (updates, (*by_slot, v.shape[2])),
        "grad_updates": (grad_updates, (*by_slot, v.shape[2])),
        "grad_mass": (grad_mass, by_slot),
        "grad_attention": (grad_attention, (*by_slot, k.shape[1])),
        "mass": (mass, by_slot),
        "attention": (attention, (*by_slot, k.shape[1])),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor is None:
            continue
        checks.require_same_kind(name, tensor, "q", q)
        checks.require_shape(name, tensor, shape)


_triton_gradients = lazy("ops.slot_attention.triton.backward", "slot_attention_backward")

define(
    "slot_attention_backward(Tensor q, Tensor k, Tensor v, float scale, float eps,"
    " Tensor? slot_mask, Tensor updates, Tensor grad_updates, Tensor grad_mass,"
    " Tensor? grad_attention, Tensor? mass=None, Tensor? attention=None)"
    " -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)",
    check=_check_slot_attention_backward,
    fake=lambda q, k, v, *_: tuple(t.new_empty(t.shape) for t in (q, k, v)),
    kernels={
        "reference": gradients.slot_attention_gradients,
        "cpu": if_built(
            # It needs no mass.
            lambda *args: native.slot_attention_gradients(*args[:10], *args[11:]),
            gradients.slot_attention_gradients,
        ),
        # Nothing as large as the attention is read.
        "triton": lambda *args: _triton_gradients(*args[:11]),
    },
    refuse=_REFUSE,
    autocast=Autocast(multiplies=True),
    is_gradient=True,
)


def _keep_attention(*args: Any) -> tuple[Tensor, Tensor]:
    updates, mass, _ = torch.ops.ocvtp.slot_attention_with_attention(*args)
    return updates, mass


_GRADIENT = Gradient(save=_save_slot_attention, backward=_slot_attention_backward)

define(
    f"slot_attention{_ARGUMENTS} -> (Tensor updates, Tensor mass)",
    check=_check_slot_attention,
    fake=_fake_slot_attention,
    kernels={
        "reference": _reference_slot_attention,
        "cpu": if_built(native.slot_attention, cpu.slot_attention),
        "triton": lazy("ops.slot_attention.triton.forward", "slot_attention"),
        "cuda": native.slot_attention,
    },
    refuse=_REFUSE,
    autocast=Autocast(multiplies=True),
    gradient=_GRADIENT._replace(on_cpu=if_built(_keep_attention, cpu.slot_attention)),
)
define(
    f"slot_attention_with_attention{_ARGUMENTS} -> (Tensor updates, Tensor mass, Tensor attention)",
    check=_check_slot_attention,
    fake=_fake_with_attention,
    kernels={
        "reference": reference.slot_attention,
        "cpu": if_built(native.slot_attention_with_attention, cpu.slot_attention_with_attention),
        "triton": lazy("ops.slot_attention.triton.forward", "slot_attention_with_attention"),
        "cuda": native.slot_attention_with_attention,
    },
    refuse=_REFUSE,
    autocast=Autocast(multiplies=True),
    # Plain PyTorch is differentiated as it is: nothing is quicker.
    gradient=_GRADIENT._replace(
        on_cpu=if_built(lambda *_: NotImplemented, cpu.slot_attention_with_attention)
    ),
)


def _check_gru_cell(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> None:
    checks.require_floating("h", h)
    if min(x.dim(), h.dim()) < 1 or x.shape[:-1] != h.shape[:-1]:
        raise ValueError(
            "x, h: expected shapes [..., E] and [..., D] with the same leading sizes, "
            f"got {list(x.shape)} and {list(h.shape)}"
        )
    checks.require_same_kind("x", x, "h", h)
    width, dim = x.shape[-1], h.shape[-1]
    for name, tensor, shape in (
        ("w_ih", w_ih, (3 * dim, width)),
        ("w_hh", w_hh, (3 * dim, dim)),
        ("b_ih", b_ih, (3 * dim,)),
        ("b_hh", b_hh, (3 * dim,)),
    ):
        checks.require_same_kind(name, tensor, "h", h)
        checks.require_shape(name, tensor, shape)


def _check_gru_cell_backward(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
    grad: Tensor,
) -> None:
    _check_gru_cell(x, h, w_ih, w_hh, b_ih, b_hh)
    checks.require_same_kind("grad", grad, "h", h)
    checks.require_shape("grad", grad, h.shape)


define(
    f"gru_cell_backward({_GRU_ARGUMENTS}, Tensor grad) -> (Tensor grad_x,"
    " Tensor grad_h, Tensor grad_w_ih, Tensor grad_w_hh, Tensor grad_b_ih, Tensor grad_b_hh)",
    check=_check_gru_cell_backward,
    fake=lambda *inputs: tuple(t.new_empty(t.shape) for t in inputs[:6]),
    kernels={
        "reference": gradients.gru_cell_gradients,
        "cpu": gru_cpu.gru_cell_gradients,
        "triton": lazy("ops.gru_cell.triton", "gru_cell_backward"),
    },
    autocast=Autocast(multiplies=True),
    is_gradient=True,
)


def _save_gru_cell(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gru_cell_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    x, h, w_ih, w_hh, b_ih, b_hh = ctx.saved_tensors
    inputs = (x, h, w_ih, w_hh, b_ih, b_hh)
    # As for the competition.
    if torch.is_grad_enabled():
        return gradients.gru_cell_gradients(*inputs, grad)
    found: tuple[Tensor, ...] = torch.ops.ocvtp.gru_cell_backward(*inputs, grad)
    return found


define(
    f"gru_cell({_GRU_ARGUMENTS}) -> Tensor",
    check=_check_gru_cell,
    fake=lambda x, h, *_: h.new_empty(h.shape),
    kernels={
        "reference": reference.gru_cell,
        "cpu": if_built(native.gru_cell, cpu.gru_cell),
        "triton": lazy("ops.gru_cell.triton", "gru_cell"),
        "cuda": native.gru_cell,
    },
    autocast=Autocast(multiplies=True),
    gradient=Gradient(
        save=_save_gru_cell, backward=_gru_cell_backward, on_cpu=gru_cpu.KeptGates.apply
    ),
)


def _slot_attention_step(
    slots: Tensor,
    k: Tensor,
    v: Tensor,
    weights: Sequence[Tensor],
    scale: float,
    eps: float = 1e-5,
    slot_mask: Tensor | None = None,
) -> Tensor:
    if len(weights) != len(reference.StepWeights._fields):
        raise ValueError(
            f"weights: expected {len(reference.StepWeights._fields)} tensors "
            f"({', '.join(reference.StepWeights._fields)}), got {len(weights)}"
        )
    return iterate(slots, k, v, reference.StepWeights(*weights), scale, eps, slot_mask)[0]


compose(
    "slot_attention_step(Tensor slots, Tensor k, Tensor v, Tensor[] weights, float scale,"
    " float eps=1e-05, Tensor? slot_mask=None) -> Tensor",
    _slot_attention_step,
    "ocvtp::slot_attention, ocvtp::gru_cell, LayerNorm and Linear",
)
