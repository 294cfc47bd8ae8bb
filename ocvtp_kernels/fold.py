"""Algebra that is free: a pruner's weights folded once, so that pruning reads them least.

With x^ the un-affined LayerNorm of the encoding, s^ the un-affined LayerNorm of the slots,
(g, b) the affine of ``norm_in``, (g_q, b_q) that of ``norm_slots_0`` and
M = D^-1/2 Wq^T Wk (all exact identities):

* logits ``= q' x^T + c`` with ``q' = s^ (g_q M g) + (b_q M) g`` and the per-slot constant
  ``c = s^ (g_q (M b)) + b_q M b``, which does not cancel since the softmax runs over slots;
* with A the attention, m = sum_n A and d = m + eps, the GRU's input gates are
  ``((A x^) / d) (W_ih Wv g)^T + (m / d) (W_ih Wv b) + b_ih``, so Wk and Wv vanish;
* a LayerNorm's affine folds into the Linear after it, and so does its mean: LN(x) sums to zero, so
  a constant may be taken off every row of the weight. Rows that sum to zero make the mean of x
  cancel by itself (`centred`); q' is centred likewise, since it meets x^.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels import checks
from ocvtp_kernels.config import ENCODE_NORMS
from ocvtp_kernels.kept import kept_with
from ocvtp_kernels.modules import MLP, SlotAttention
from ocvtp_kernels.slots.reference import StepWeights


class FoldedSlots(NamedTuple):
    """What the iterations read, in packed order."""

    state_weight: Tensor  # [4D, D]    W_hh, then the rows of q', which can be one product
    query_bias: Tensor  # [D]
    constant_weight: Tensor  # [D]     the row of c
    constant_bias: Tensor  # [1]
    gates_weight: Tensor  # [3D, D]    W_ih Wv g
    gates_shift: Tensor  # [3D]       W_ih Wv b, times m / d
    gates_bias: Tensor  # [3D]       b_ih
    hidden_bias: Tensor  # [3D]       b_hh
    ffn_w1: Tensor  # [F, D]     gamma of norm_slots_1 folded in; centred
    ffn_b1: Tensor  # [F]
    ffn_w2: Tensor  # [D, F]
    ffn_b2: Tensor  # [D]

    @property
    def dim(self) -> int:
        """The slot width D."""
        return self.state_weight.shape[1]

    @property
    def hidden_weight(self) -> Tensor:
        """W_hh ``[3D, D]``."""
        return self.state_weight[: 3 * self.dim]

    @property
    def query_weight(self) -> Tensor:
        """The rows of q' ``[D, D]``; centred, and q' too."""
        return self.state_weight[3 * self.dim :]


class Folded(NamedTuple):
    """A pruner's folded weights."""

    num_iter: int
    ln: str | None
    encode_weights: list[Tensor]
    encode_biases: list[Tensor]
    post_norm: tuple[Tensor, Tensor] | None  # gamma, beta [D], when ln is "post"
    slots: FoldedSlots

    def pack(self) -> list[Tensor]:
        """The flat list that ``ocvtp::prune`` takes as ``weights``.

        The plan (iterations, place of the encode LayerNorm, depth of the encode MLP) rides in the
        shape of the first, empty tensor: it moves with the weights and needs no read from a
        device.
        """
        slots = self.slots
        plan = (0, self.num_iter, ENCODE_NORMS.index(self.ln), len(self.encode_weights))
        return [
            slots.state_weight.new_empty(plan),
            *self.encode_weights,
            *self.encode_biases,
            *(self.post_norm or ()),
            *slots,
        ]


def unpack(weights: Sequence[Tensor]) -> Folded:
    """Reads a list made by `Folded.pack`.

    Raises:
        ValueError, TypeError: the list was not made by `Folded.pack`: its length, a tensor's shape,
            dtype or device.
    """
    known = kept_with(weights)
    if known is not None:
        return known.folded
    plan = weights[0].shape if len(weights) else torch.Size()
    whole = len(plan) == 4 and plan[0] == 0 and plan[1] >= 1 and plan[3] >= 1
    if not whole or plan[2] >= len(ENCODE_NORMS):
        raise ValueError("weights: expected the list that OCPruner.packed() returns")
    _, num_iter, ln_code, depth = plan
    ln = ENCODE_NORMS[ln_code]
    first_norm = 1 + 2 * depth
    first_slot = first_norm + (2 if ln == "post" else 0)
    expected = first_slot + len(FoldedSlots._fields)
    if len(weights) != expected:
        raise ValueError(f"weights: expected {expected} tensors, got {len(weights)}")
    folded = Folded(
        num_iter=num_iter,
        ln=ln,
        encode_weights=list(weights[1 : 1 + depth]),
        encode_biases=list(weights[1 + depth : first_norm]),
        post_norm=(weights[first_norm], weights[first_norm + 1]) if ln == "post" else None,
        slots=FoldedSlots(*weights[first_slot:]),
    )
    _check(weights, folded)
    return folded


def _check(weights: Sequence[Tensor], folded: Folded) -> None:
    """Raises unless all of a list's tensors fit each other: kernels trust them."""
    slots = folded.slots
    matrices = (folded.encode_weights[0], slots.state_weight, slots.ffn_w1)
    if any(matrix.dim() != 2 for matrix in matrices):
        raise ValueError("weights: expected matrices where OCPruner.packed() has them")
    dim, ffn = slots.dim, slots.ffn_w1.shape[0]
    inner = [bias.numel() for bias in folded.encode_biases[:-1]]
    widths = [folded.encode_weights[0].shape[1], *inner, dim]
    expected: list[tuple[int, ...]] = [
        tuple(weights[0].shape),
        *zip(widths[1:], widths, strict=False),
        *((width,) for width in widths[1:]),
        *((dim,) for _ in folded.post_norm or ()),
        *((4 * dim, dim), (dim,), (dim,), (1,)),
        *((3 * dim, dim), (3 * dim,), (3 * dim,), (3 * dim,)),
        *((ffn, dim), (ffn,), (dim, ffn), (dim,)),
    ]
    if [weight.shape for weight in weights] != expected:
        for place, (weight, shape) in enumerate(zip(weights, expected, strict=True)):
            if weight.shape != shape:
                raise ValueError(
                    f"weights[{place}]: expected shape {list(shape)}, got {list(weight.shape)}"
                )
    kinds = [(weight.dtype, weight.device) for weight in weights]
    if kinds.count(kinds[0]) != len(kinds):
        for place, weight in enumerate(weights):
            checks.require_same_kind(f"weights[{place}]", weight, "weights[0]", weights[0])


def centred(matrix: Tensor) -> Tensor:
    """The matrix with the mean of each row (last dimension) taken off."""
    return matrix - matrix.mean(dim=-1, keepdim=True)


def fold_slots(
    step: StepWeights, w_k: Tensor, w_v: Tensor, norm_in_weight: Tensor, norm_in_bias: Tensor
) -> FoldedSlots:
    """Folds one iteration's weights, in float64; what stays as it is keeps its dtype.

    Args:
        step: the iteration's weights; w_k, w_v: ``[D, D]`` token projections.
        norm_in_weight, norm_in_bias: ``[D]`` affine of ``norm_in``.
    """
    dim = step.w_q.shape[0]
    norm_weight, norm_bias = norm_in_weight.double(), norm_in_bias.double()
    score = step.w_q.double().T @ w_k.double() * dim**-0.5
    # Columns of `to_keys`: the D channels of q', then c.
    to_keys = torch.cat([centred(score * norm_weight), (score @ norm_bias).unsqueeze(-1)], dim=-1)
    query_weight = centred((step.norm_q_weight.double().unsqueeze(-1) * to_keys).T)
    query_bias = step.norm_q_bias.double() @ to_keys
    values = step.w_ih.double() @ w_v.double()
    ffn_w1 = step.ffn_w1.double()
    return FoldedSlots(
        state_weight=torch.cat([step.w_hh, query_weight[:dim].to(step.w_hh.dtype)]),
        query_bias=query_bias[:dim],
        constant_weight=query_weight[dim],
        constant_bias=query_bias[dim:],
        gates_weight=values * norm_weight,
        gates_shift=values @ norm_bias,
        gates_bias=step.b_ih,
        hidden_bias=step.b_hh,
        ffn_w1=centred(ffn_w1 * step.norm_ffn_weight.double()),
        ffn_b1=step.ffn_b1 + ffn_w1 @ step.norm_ffn_bias.double(),
        ffn_w2=step.ffn_w2,
        ffn_b2=step.ffn_b2,
    )


class Unfolded(NamedTuple):
    """What a pruner is folded of."""

    num_iter: int
    ln: str | None
    encode_weights: list[Tensor]
    encode_biases: list[Tensor]
    norm: list[Tensor]  # gamma, beta of the encode LayerNorm, if there is one
    slots: list[Tensor]  # what `fold_slots` takes, the step's weights one by one

    @classmethod
    def of(cls, encode: MLP, slots: SlotAttention) -> Unfolded:
        """The present weights of a pruner's two stages, themselves."""
        return cls(
            num_iter=slots.num_iter,
            ln=encode.ln,
            encode_weights=[linear.weight for linear in encode.linears],
            encode_biases=[linear.bias for linear in encode.linears],
            norm=list(encode.norm or ()),
            slots=[
                *(*slots.step_weights(), slots.proj_k.weight, slots.proj_v.weight),
                *(slots.norm_in.weight, slots.norm_in.bias),
            ],
        )

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors."""
        return [*self.encode_weights, *self.encode_biases, *self.norm, *self.slots]

    @property
    def rules(self) -> tuple[Any, ...]:
        """All else."""
        return self.num_iter, self.ln, len(self.encode_weights)

    def fold(self) -> Folded:
        """Folds them, in float64 whatever their dtype; what stays as it is keeps its dtype."""
        weights, biases = list(self.encode_weights), list(self.encode_biases)
        if self.ln == "pre":
            # The affine goes into the first Linear.
            gamma, beta = (tensor.double() for tensor in self.norm)
            first = weights[0].double()
            weights[0], biases[0] = centred(first * gamma), biases[0] + first @ beta
        step, rest = self.slots[:-4], self.slots[-4:]
        return Folded(
            num_iter=self.num_iter,
            ln=self.ln,
            encode_weights=weights,
            encode_biases=biases,
            post_norm=(self.norm[0], self.norm[1]) if self.ln == "post" else None,
            slots=fold_slots(StepWeights(*step), *rest),
        )
