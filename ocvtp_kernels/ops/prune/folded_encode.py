"""The encode MLP on folded weights, ending in the un-affined LayerNorm of ``norm_in``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ocvtp_kernels.ops.prune.encode import EPS, encode
from ocvtp_kernels.ops.prune.weights import Folded


def encode_folded(tokens: Tensor, folded: Folded) -> Tensor:
    """Reference tokens ``[B, N, C]`` to x^ ``[B, N, D]``, key and value of every iteration."""
    norm_weight, norm_bias = folded.post_norm or (None, None)
    x = encode(
        tokens, folded.encode_weights, folded.encode_biases, folded.ln, norm_weight, norm_bias
    )
    return F.layer_norm(x, x.shape[-1:], eps=EPS)
