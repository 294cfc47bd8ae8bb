"""The encode MLP on folded weights and the native kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.dtypes import accumulate_dtype
from ocvtp_kernels.encode.reference import EPS
from ocvtp_kernels.fold import Folded
from ocvtp_kernels.linear.native import encode_dtype, linear


def encode(tokens: Tensor, folded: Folded) -> Tensor:
    """`ocvtp_kernels.encode.folded.encode_folded`.

    Args:
        tokens: reference tokens ``[B, N, C]``.

    Returns:
        x^ ``[B, N, D]``, on the CPU in float32 or wider, else in the dtype of ``tokens``.
    """
    native = torch.ops.ocvtp_native
    on_cpu = tokens.device.type == "cpu"
    wide = accumulate_dtype(tokens.dtype) if on_cpu else tokens.dtype
    inner = encode_dtype(tokens.dtype, tokens.device)
    x = tokens.to(inner)
    if folded.ln == "pre":
        x = native.layer_norm(tokens.to(wide), EPS).to(inner)
    last = len(folded.encode_weights) - 1
    for depth, (weight, bias) in enumerate(
        zip(folded.encode_weights, folded.encode_biases, strict=True)
    ):
        x = linear(x, weight, bias, gelu=depth < last)
    x = x.to(wide)
    if folded.post_norm is not None:
        gamma, beta = folded.post_norm
        x = torch.addcmul(beta.to(wide), native.layer_norm(x, EPS), gamma.to(wide))
    return native.layer_norm(x, EPS)
