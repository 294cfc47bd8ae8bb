"""A Linear of the native chain: a BLAS product, with bias and GELU fused where they can be.

On the CPU the product is oneDNN's, by ATen, where torch has it: its weights are packed once and
remembered while the weight tensor lives and is unchanged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ocvtp_kernels.dtypes import accumulate_dtype

# By weight: the version and address it was packed at, and its pack by dtype.
_packs: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

# A hint for the layout of a pack: the fewest rows that are worth its blocks.
ROWS = 64


def linear(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False) -> Tensor:
    """``x W^T + b``, then the exact GELU if asked for.

    Args:
        x: ``[..., I]`` in the dtype to compute in.
        weight: ``[O, I]``; bias: ``[O]``; any floating dtype.

    Returns:
        ``[..., O]`` in the dtype of ``x``.
    """
    bias = bias.to(x.dtype)
    pack = _pack(weight, x.dtype) if _can_pack(x, weight) else None
    if pack is not None:
        post, algorithm = ("gelu", "none") if gelu else ("none", "")
        rows = x.reshape(-1, x.shape[-1])
        out = torch.ops.mkldnn._linear_pointwise(rows, pack, bias, post, [], algorithm)
        return out.view(*x.shape[:-1], -1)
    weight = weight.to(x.dtype)
    if not gelu:
        return F.linear(x, weight, bias)
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        return F.gelu(F.linear(x, weight, bias))
    out = F.linear(x, weight)
    torch.ops.ocvtp_native.bias_gelu_(out, bias)
    return out


def encode_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What tokens of ``dtype`` are encoded in: wide on the CPU, unless it multiplies bfloat16."""
    if device.type != "cpu":
        return dtype
    if dtype == torch.bfloat16 and _has_onednn() and multiplies_bfloat16():
        return dtype
    return accumulate_dtype(dtype)


def multiplies_bfloat16() -> bool:
    """Whether this CPU has AVX-512 BF16 or AMX, whose products of bfloat16 sum in float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)


def _can_pack(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.numel() > 0
        and _has_onednn()
        # Without a version counter nobody could tell that a weight was changed.
        and not weight.is_inference()
    )


def _pack(weight: Tensor, dtype: torch.dtype) -> Tensor:
    place = (weight._version, weight.data_ptr())
    found = _packs.get(weight)
    if found is None or found[0] != place:
        found = (place, {})
        _packs[weight] = found
    packs: dict[torch.dtype, Tensor] = found[1]
    if dtype not in packs:
        dense = weight.detach().to(dtype).contiguous()
        packs[dtype] = torch.ops.mkldnn._reorder_linear_weight(dense, ROWS)
    return packs[dtype]
