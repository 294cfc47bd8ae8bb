"""The iterations of the native pipeline on folded weights: products by BLAS, others by kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.dtypes import acc_dtype, product_dtype
from ocvtp_kernels.ops.prune.native.linear import Layer, linear
from ocvtp_kernels.ops.prune.reference import MASS_EPS
from ocvtp_kernels.ops.prune.weights import FoldedSlots
from ocvtp_kernels.ops.slot_attention.reference import LN_EPS


class Start(NamedTuple):
    """Initial slots that all images share, and what the first iteration makes of them alone."""

    slots: Tensor  # [1, K, D]
    product: Tensor  # [1, K, 4D]
    statistics: Tensor  # [1, K, 3]

    def of(self, slots: Tensor) -> Start | None:
        """That of these slots ``[B, K, D]``, if they are the first K of its own, in its memory."""
        batch, count, dim = slots.shape
        mine = self.slots
        if slots.data_ptr() != mine.data_ptr() or slots.dtype != mine.dtype:
            return None
        if count > mine.shape[1] or slots.shape[2] != mine.shape[2]:
            return None
        if slots.stride()[1:] != (dim, 1) or (batch > 1 and slots.stride(0) != 0):
            return None
        return Start(*(tensor[:, :count] for tensor in self))


class SlotLayers(NamedTuple):
    """What `iterate` reads; see `ocvtp_kernels.pruner.fold.FoldedSlots`."""

    state: Layer  # the GRU's hidden product and q', both of s^
    query: Layer  # q' alone
    constant_weight: Tensor  # [D]
    gates: Layer
    gates_shift: Tensor  # [3D]
    hidden_sums: Tensor  # [3D], of W_hh's rows: W_hh h = deviation W_hh s^ + mean sums
    hidden_bias: Tensor  # [3D]
    ffn_in: Layer
    ffn_out: Layer
    start: Start | None = None

    @classmethod
    def of(cls, folded: FoldedSlots) -> SlotLayers:
        """Of folded weights, in the dtype to compute in on their device."""
        dtype = product_dtype(folded.state_weight.dtype, folded.state_weight.device)
        weights = FoldedSlots(*(weight.to(dtype) for weight in folded))
        return cls(
            # The bias of q' moves all logits of a token alike, which a softmax over slots undoes.
            state=Layer(weights.state_weight, None),
            query=Layer(weights.query_weight, None),
            constant_weight=weights.constant_weight,
            gates=Layer(weights.gates_weight, weights.gates_bias),
            gates_shift=weights.gates_shift,
            hidden_sums=weights.hidden_weight.sum(dim=1),
            hidden_bias=weights.hidden_bias,
            ffn_in=Layer(weights.ffn_w1, weights.ffn_b1),
            ffn_out=Layer(weights.ffn_w2, weights.ffn_b2),
        )

    def packed(self) -> SlotLayers:
        """The same with packs; see `Layer.packed`."""
        return self._replace(
            state=self.state.packed(),
            query=self.query.packed(),
            gates=self.gates.packed(),
            ffn_in=self.ffn_in.packed(),
            ffn_out=self.ffn_out.packed(),
        )

    def starting_from(self, slots: Tensor) -> SlotLayers:
        """The same with the `Start` of slots ``[1, K, D]``, which are not to change any more."""
        dtype = self.state.weight.dtype
        exact = slots.double()
        normed = torch.nn.functional.layer_norm(exact, exact.shape[-1:], eps=LN_EPS)
        variance, mean = torch.var_mean(exact, dim=-1, correction=0)
        constant = normed @ self.constant_weight.double()
        statistics = torch.stack([mean, (variance + LN_EPS).sqrt(), constant], dim=-1)
        product = normed @ self.state.weight.double().T
        wide = acc_dtype(dtype)
        return self._replace(start=Start(slots, product.to(dtype), statistics.to(wide)))


def iterate(
    slots: Tensor, tokens: Tensor, layers: SlotLayers, num_iter: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The last iteration's queries, tokens and constants, after ``num_iter - 1`` whole iterations.

    Slots are summed over iterations in float32 or wider; products take the dtype of the tokens.

    Args:
        slots: ``[B, K, D]`` initial slots; tokens: ``[B, N, D]``, what `encode` returns.

    Returns:
        q' ``[B, K, D]``, x^ ``[B, N, D]`` and c ``[B, K]`` in float32 or wider, of which
        ``logits = q' x^T + c`` up to a number a token.
    """
    native = torch.ops.ocvtp_native
    batch, _, dim = slots.shape
    start = layers.start and layers.start.of(slots)
    if batch > 1 and slots.stride(0) == 0:
        slots = slots[:1]  # all images begin alike
    slots = slots.to(tokens.dtype)
    if start is not None:
        x_hat = native.layer_norm(tokens, LN_EPS)
        product, statistics = start.product, start.statistics
    else:
        x_hat, normed, statistics = native.start(tokens, slots, layers.constant_weight, LN_EPS)
        product = linear(normed, layers.state if num_iter > 1 else layers.query)
    for iteration in range(1, num_iter):
        h_gates, q = product.split([3 * dim, dim], dim=-1)
        updates, mass, _ = native.slot_attention(
            q.expand(batch, -1, -1),
            x_hat,
            x_hat,
            statistics[..., 2].expand(batch, -1),
            None,
            1.0,
            MASS_EPS,
            False,
        )
        x_gates = linear(updates, layers.gates)
        state, normed = native.gru_gates(
            x_gates,
            h_gates,
            slots,
            layers.gates_shift,
            mass,
            statistics,
            layers.hidden_sums,
            layers.hidden_bias,
            MASS_EPS,
            True,
        )
        out = linear(linear(normed, layers.ffn_in, gelu=True), layers.ffn_out)
        slots, normed, statistics = native.norm_slots(state, out, layers.constant_weight, LN_EPS)
        product = linear(normed, layers.state if iteration + 1 < num_iter else layers.query)
    q = product[..., -dim:]
    return q.expand(batch, -1, -1), x_hat, statistics[..., 2].expand(batch, -1)
