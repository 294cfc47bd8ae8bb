"""The encode MLP on folded weights and the native kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.dtypes import product_dtype
from ocvtp_kernels.ops.prune.native.linear import Layer, linear, padded
from ocvtp_kernels.ops.prune.weights import Folded
from ocvtp_kernels.ops.slot_attention.reference import LN_EPS


class EncodeLayers(NamedTuple):
    """What `encode` reads."""

    ln: str | None
    linears: tuple[Layer, ...]
    post_norm: tuple[Tensor, Tensor] | None  # gamma, beta [D], when ln is "post"

    @classmethod
    def of(cls, folded: Folded) -> EncodeLayers:
        """Of folded weights, in the dtypes to compute in on their device."""
        first = folded.encode_weights[0]
        dtype = product_dtype(first.dtype, first.device)
        pairs = zip(folded.encode_weights, folded.encode_biases, strict=True)
        norm = folded.post_norm and (folded.post_norm[0].to(dtype), folded.post_norm[1].to(dtype))
        return cls(folded.ln, tuple(Layer.of(*pair, dtype) for pair in pairs), norm)

    def packed(self) -> EncodeLayers:
        """The same with packs; see `Layer.packed`."""
        return self._replace(linears=tuple(layer.packed() for layer in self.linears))


def encode(tokens: Tensor, layers: EncodeLayers) -> Tensor:
    """`ocvtp_kernels.ops.prune.reference.encode_folded` before its last LayerNorm.

    Args:
        tokens: reference tokens ``[B, N, C]``.

    Returns:
        ``[B, N, D]``, in the dtype of the layers.
    """
    native = torch.ops.ocvtp_native
    x = tokens.to(layers.linears[0].weight.dtype)
    if layers.ln == "pre":
        x = native.layer_norm(x, LN_EPS)
    x = x.reshape(-1, x.shape[-1])
    if layers.linears[0].pack is not None:
        x = padded(x)  # once for all layers
    last = len(layers.linears) - 1
    for depth, layer in enumerate(layers.linears):
        x = linear(x, layer, gelu=depth < last)
    x = x[: tokens.shape[:-1].numel()].view(*tokens.shape[:-1], x.shape[-1])
    if layers.post_norm is not None:
        gamma, beta = layers.post_norm
        x = torch.addcmul(beta, native.layer_norm(x, LN_EPS), gamma)
    return x
