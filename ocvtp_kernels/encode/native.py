"""The encode MLP on folded weights and the native kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels.dtypes import accumulate_dtype
from ocvtp_kernels.encode.reference import EPS
from ocvtp_kernels.fold import Folded
from ocvtp_kernels.linear.native import Layer, encode_dtype, linear


class EncodeLayers(NamedTuple):
    """What `encode` reads."""

    ln: str | None
    linears: tuple[Layer, ...]
    post_norm: tuple[Tensor, Tensor] | None  # gamma, beta [D], when ln is "post"

    @classmethod
    def of(cls, folded: Folded) -> EncodeLayers:
        """Of folded weights, in the dtypes to compute in on their device."""
        first = folded.encode_weights[0]
        dtype = encode_dtype(first.dtype, first.device)
        pairs = zip(folded.encode_weights, folded.encode_biases, strict=True)
        wide = _wide(first)
        norm = folded.post_norm and (folded.post_norm[0].to(wide), folded.post_norm[1].to(wide))
        return cls(folded.ln, tuple(Layer.of(*pair, dtype) for pair in pairs), norm)

    def packed(self) -> EncodeLayers:
        """The same with packs; see `Layer.packed`."""
        return self._replace(linears=tuple(layer.packed() for layer in self.linears))


def encode(tokens: Tensor, layers: EncodeLayers) -> Tensor:
    """`ocvtp_kernels.encode.folded.encode_folded` before its last LayerNorm.

    Args:
        tokens: reference tokens ``[B, N, C]``.

    Returns:
        ``[B, N, D]``, on the CPU in float32 or wider, else in the dtype of ``tokens``.
    """
    native = torch.ops.ocvtp_native
    wide = _wide(tokens)
    x = tokens
    if layers.ln == "pre":
        x = native.layer_norm(tokens.to(wide), EPS)
    last = len(layers.linears) - 1
    for depth, layer in enumerate(layers.linears):
        x = linear(x.to(layer.weight.dtype), layer, gelu=depth < last)
    x = x.to(wide)
    if layers.post_norm is not None:
        gamma, beta = layers.post_norm
        x = torch.addcmul(beta, native.layer_norm(x, EPS), gamma)
    return x


def _wide(tensor: Tensor) -> torch.dtype:
    """What lies between products: float32 or wider on the CPU."""
    return accumulate_dtype(tensor.dtype) if tensor.device.type == "cpu" else tensor.dtype
