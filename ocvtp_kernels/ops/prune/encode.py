"""The encode MLP in plain PyTorch: the oracle of the encode kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5


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
        norm_weight: the LayerNorm's gamma; ``[C]`` for "pre", ``[D]`` for "post".
        norm_bias: its beta, of the same shape.

    Returns:
        ``[B, N, D]``, the dtype of ``tokens``.
    """
    x = tokens
    if ln == "pre":
        x = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, EPS)
    for depth, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = F.linear(x if depth == 0 else F.gelu(x), weight, bias)
    if ln == "post":
        x = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, EPS)
    return x
