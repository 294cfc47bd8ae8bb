"""A Linear of the native pipeline: a BLAS product, with bias and GELU fused where they can be.

On the CPU the product is oneDNN's, by ATen, where torch has it. It is faster on weights that it
has packed. Packing pays, and is right, for weights that stay as they are: whoever owns such makes
`Layer.packed` of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ocvtp_kernels.native import missing_reason

# A hint for the layout of a pack: the fewest rows that are worth its blocks.
ROWS = 64
# Multiplications that are worth a call of oneDNN, which takes the host 25 µs longer.
MIN_PRODUCTS = 1 << 20


class Layer(NamedTuple):
    """A Linear's weights in the dtype to compute in."""

    weight: Tensor  # [O, I]
    bias: Tensor | None  # [O]
    pack: Tensor | None = None  # the weight as oneDNN has packed it

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Layer:
        """These weights, cast to ``dtype``."""
        return cls(weight.to(dtype), None if bias is None else bias.to(dtype))

    def packed(self) -> Layer:
        """The same with a pack, where there is one to be had: it sees no edits of the weight."""
        weight = self.weight
        if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
            return self
        if missing_reason("cpu") is not None or not torch.backends.mkldnn.is_available():
            return self
        # Not every CPU that oneDNN runs on has what it packs half precision by.
        half = weight.dtype == torch.bfloat16
        if half and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return self
        dense = weight.detach().contiguous()
        return self._replace(pack=torch.ops.mkldnn._reorder_linear_weight(dense, ROWS))


def linear(x: Tensor, layer: Layer, gelu: bool = False) -> Tensor:
    """``x W^T + b``, then the exact GELU if asked for; only then a layer needs a bias.

    Args:
        x: ``[..., I]`` in the dtype of the layer.

    Returns:
        ``[..., O]`` in the dtype of ``x``.
    """
    weight, bias, pack = layer
    products = x.numel() * weight.shape[0]
    if pack is not None and products >= MIN_PRODUCTS and torch.backends.mkldnn.enabled:
        post, algorithm = ("gelu", "none") if gelu else ("none", "")
        rows = x.reshape(-1, x.shape[-1])
        out = torch.ops.mkldnn._linear_pointwise(padded(rows), pack, bias, post, [], algorithm)
        return out[: len(rows)].view(*x.shape[:-1], -1)
    if not gelu:
        return F.linear(x, weight, bias)
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        return F.gelu(F.linear(x, weight, bias))
    out = F.linear(x, weight)
    torch.ops.ocvtp_native.bias_gelu_(out, bias)
    return out


def padded(rows: Tensor) -> Tensor:
    """Rows ``[R, C]`` with as many of zeros behind them as make a usual count, at most 3 % more.

    For each count of rows that it meets oneDNN keeps a program of about a megabyte, a thousand of
    them: photos of many sizes would fill the memory. Usual are 32 counts an octave.
    """
    count = len(rows)
    step = 1 << max(0, count.bit_length() - 6)
    more = -count % step
    return F.pad(rows, (0, 0, 0, more)) if more else rows
