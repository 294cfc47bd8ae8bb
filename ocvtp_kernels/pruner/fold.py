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

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocvtp_kernels.ops.prune.weights import Folded, FoldedSlots
from ocvtp_kernels.ops.slot_attention.reference import StepWeights
from ocvtp_kernels.pruner.config import PrunerConfig
from ocvtp_kernels.pruner.layers import (
    computes_as,
    gru_weights,
    linear_weights,
    norm_weights,
    require_same,
    unwrapped,
)
from ocvtp_kernels.pruner.modules import MLP, SlotAttention


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


def step_weights(config: PrunerConfig, slots: SlotAttention, like: Tensor) -> StepWeights:
    """The weights of one iteration, those with which the layers of ``aggregat`` compute.

    Args:
        config: the pruner's.
        slots: its slot stage.
        like: a tensor of the dtype and on the device that the stage is for.

    Raises:
        ValueError: no weights compute what a layer does; the message names it.
    """
    name, dim = "aggregat", config.slot_dim
    ffn = _mlp_weights(f"{name}.ffn", slots.ffn, (dim, config.agg_ffn_dim), like)
    found = [
        *norm_weights(f"{name}.norm_slots_0", slots.norm_slots_0, dim, like),
        _projection(f"{name}.proj_q", slots.proj_q, dim, like),
        *gru_weights(f"{name}.gru", slots.gru, dim, like),
        *norm_weights(f"{name}.norm_slots_1", slots.norm_slots_1, dim, like),
        *(tensor for layer in ffn for tensor in layer),
    ]
    return StepWeights(*found)


def _projection(name: str, layer: nn.Module, width: int, like: Tensor) -> Tensor:
    weight, bias = linear_weights(name, layer, width, like)
    if bias is not None and not bias.is_meta and bias.any():
        raise ValueError(f"{name}: expected a layer without a bias, as it could not be folded")
    return weight


def _mlp_weights(
    name: str, mlp: MLP, widths: tuple[int, ...], like: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of each Linear, whose inputs have these widths."""
    for part, module, kind in ((name, mlp, MLP), (f"{name}.mlp", mlp.mlp, nn.Sequential)):
        if not computes_as(module, kind):
            require_same(part, module, kind.forward, like, widths[0])
    found, place = [], mlp.first_linear
    for depth, (layer, width) in enumerate(zip(mlp.linears, widths, strict=True)):
        if depth:
            _require_between(f"{name}.mlp", mlp.mlp, place - 2, width, like)
        weight, bias = linear_weights(f"{name}.mlp.{place}", layer, width, like)
        found.append((weight, weight.new_zeros(len(weight)) if bias is None else bias))
        place += 3
    return found


def _require_between(
    name: str, layers: nn.Sequential, place: int, width: int, like: Tensor
) -> None:
    """Raises ValueError unless there are a GELU and then a Dropout, or what computes as they do."""
    gelu, dropout = layers[place], layers[place + 1]
    if not computes_as(gelu, nn.GELU) or gelu.approximate != "none":
        require_same(f"{name}.{place}", gelu, lambda _, x: F.gelu(x), like, width)
    if not computes_as(dropout, nn.Dropout):
        require_same(f"{name}.{place + 1}", dropout, lambda _, x: x, like, width)


class Unfolded(NamedTuple):
    """What a pruner is folded of."""

    num_iter: int
    ln: str | None
    encode_weights: list[Tensor]
    encode_biases: list[Tensor]
    norm: list[Tensor]  # gamma, beta of the encode LayerNorm, if there is one
    slots: list[Tensor]  # what `fold_slots` takes, the step's weights one by one

    @classmethod
    def of(cls, config: PrunerConfig, encode: Any, slots: Any, like: Tensor) -> Unfolded:
        """The present weights of a pruner's two stages, themselves where they are its layers' own.

        Args:
            config: the pruner's.
            encode, slots: ``encode_project`` and ``aggregat``.
            like: a tensor of the dtype and on the device that they are for.

        Raises:
            ValueError: no weights compute what a layer does; the message names it.
        """
        encode, slots = unwrapped(encode), unwrapped(slots)
        for name, stage, kind in (
            ("encode_project", encode, MLP),
            ("aggregat", slots, SlotAttention),
        ):
            if not isinstance(stage, kind):
                raise ValueError(f"{name}: expected {kind.__name__}, got {type(stage).__name__}")
        dim, widths = config.slot_dim, (config.enc_in_dim, *config.enc_dims)
        if not computes_as(slots, SlotAttention):
            require_same("aggregat", slots, SlotAttention.forward, like, dim, dim)
        encoded = _mlp_weights("encode_project", encode, widths[:-1], like)
        norm: list[Tensor] = []
        if encode.norm is not None:
            place, width = (0, widths[0]) if encode.ln == "pre" else (len(encode.mlp) - 1, dim)
            norm += norm_weights(f"encode_project.mlp.{place}", encode.norm, width, like)
        return cls(
            num_iter=slots.num_iter,
            ln=encode.ln,
            encode_weights=[weight for weight, _ in encoded],
            encode_biases=[bias for _, bias in encoded],
            norm=norm,
            slots=[
                *step_weights(config, slots, like),
                _projection("aggregat.proj_k", slots.proj_k, dim, like),
                _projection("aggregat.proj_v", slots.proj_v, dim, like),
                *norm_weights("aggregat.norm_in", slots.norm_in, dim, like),
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
