"""The pruner on folded weights in plain PyTorch: from reference tokens to attention.

The folding and its identities are in `ocvtp_kernels.pruner.fold`. Tokens are read once an
iteration, as key and value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ocvtp_kernels.dtypes import acc_dtype, product_dtype
from ocvtp_kernels.ops.gru_cell import gru_gates
from ocvtp_kernels.ops.prune.weights import Folded, FoldedSlots, unpack
from ocvtp_kernels.ops.slot_attention.reference import LN_EPS, log_attention

MASS_EPS = 1e-5


def log_attention_of(
    reference_tokens: Tensor, weights: Sequence[Tensor], slots_init: Tensor
) -> Tensor:
    """The last iteration's log-attention ``[B, K, N]``, computed in the dtype given.

    Args:
        reference_tokens: ``[B, N, C]``.
        weights: the list of `Folded.pack`.
        slots_init: ``[B, K, D]``.
    """
    return log_attention(attention_logits(reference_tokens, weights, slots_init))


def upcast_log_attention_of(
    reference_tokens: Tensor, weights: Sequence[Tensor], slots_init: Tensor
) -> Tensor:
    """The same from products in the dtype that the device multiplies, in float32 or wider.

    Scores of half precision would tie.
    """
    dtype = product_dtype(reference_tokens.dtype, reference_tokens.device)
    logits = attention_logits(
        reference_tokens.to(dtype),
        [weight.to(dtype) for weight in weights],
        slots_init.to(dtype),
        acc_dtype(reference_tokens.dtype),
    )
    return log_attention(logits)


def attention_logits(
    reference_tokens: Tensor,
    weights: Sequence[Tensor],
    slots_init: Tensor,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The last iteration's logits ``[B, K, N]``, in ``dtype`` or that of ``reference_tokens``.

    The last iteration's mean, GRU and FFN feed nothing that selects, so they are not computed.
    """
    folded = unpack(weights)
    x_hat = encode_folded(reference_tokens, folded)
    slots = slots_init
    for _ in range(folded.num_iter - 1):
        slots = folded_step(slots, x_hat, folded.slots)
    return folded_logits(slots, x_hat, folded.slots, dtype)


def encode(
    tokens: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    ln: str | None = "pre",
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
) -> Tensor:
    """Encodes reference tokens into the slot width.

    ``encode(x) = W2 gelu(W1 LN(x) + b1) + b2`` with the exact (erf) GELU and LayerNorm eps 1e-5;
    ``ln="post"`` normalises the result instead, ``None`` nothing. Any depth.
    Source: arXiv 2511.20439, the authors' ``encode_project``.

    Args:
        tokens: ``[B, N, C]``, any floating dtype.
        weights: one ``[out, in]`` per Linear; the last ``out`` is the slot width D.
        biases: one ``[out]`` per Linear.
        ln: where the LayerNorm stands: "pre", "post" or None.
        norm_weight, norm_bias: its gamma and beta; ``[C]`` for "pre", ``[D]`` for "post".

    Returns:
        ``[B, N, D]``, the dtype of ``tokens``.
    """
    x = tokens
    if ln == "pre":
        x = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, LN_EPS)
    for depth, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = F.linear(x if depth == 0 else F.gelu(x), weight, bias)
    if ln == "post":
        x = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, LN_EPS)
    return x


def encode_folded(tokens: Tensor, folded: Folded) -> Tensor:
    """Reference tokens ``[B, N, C]`` to x^ ``[B, N, D]``, key and value of every iteration."""
    norm_weight, norm_bias = folded.post_norm or (None, None)
    x = encode(
        tokens, folded.encode_weights, folded.encode_biases, folded.ln, norm_weight, norm_bias
    )
    return F.layer_norm(x, x.shape[-1:], eps=LN_EPS)


def folded_logits(
    slots: Tensor, x_hat: Tensor, weights: FoldedSlots, dtype: torch.dtype | None = None
) -> Tensor:
    """The scaled logits of slots ``[B, K, D]`` on x^ ``[B, N, D]``: ``[B, K, N]``, in ``dtype``."""
    dtype = slots.dtype if dtype is None else dtype
    normed = F.layer_norm(slots, slots.shape[-1:], eps=LN_EPS)
    q = F.linear(normed, weights.query_weight, weights.query_bias)
    constant = F.linear(normed, weights.constant_weight.unsqueeze(0), weights.constant_bias)
    return torch.baddbmm(constant.to(dtype), q.to(dtype), x_hat.to(dtype).transpose(1, 2))


def folded_step(slots: Tensor, x_hat: Tensor, weights: FoldedSlots) -> Tensor:
    """One whole iteration: slots ``[B, K, D]``, x^ ``[B, N, D]`` -> ``[B, K, D]``."""
    attention = folded_logits(slots, x_hat, weights).softmax(dim=1)
    mass = attention.sum(dim=-1, keepdim=True)
    per_mass = (mass + MASS_EPS).reciprocal_()
    updates = torch.bmm(attention, x_hat).mul_(per_mass)
    gates = F.linear(updates, weights.gates_weight, weights.gates_bias)
    gates = torch.addcmul(gates, mass * per_mass, weights.gates_shift)
    slots = gru_gates(gates, F.linear(slots, weights.hidden_weight, weights.hidden_bias), slots)
    normed = F.layer_norm(slots, slots.shape[-1:], eps=LN_EPS)
    hidden = F.gelu(F.linear(normed, weights.ffn_w1, weights.ffn_b1))
    return slots + F.linear(hidden, weights.ffn_w2, weights.ffn_b2)
