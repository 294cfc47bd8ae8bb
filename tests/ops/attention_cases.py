"""Queries, keys and tokens for the ops on the attention of slots."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.ops.slot_attention.reference import slot_logits
from tests.cases import random_tokens


def strided_qkv(batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Seven slots and 33 tokens, of which keys and values are strided views."""
    dense = random_tokens(batch, 34, 10, seed=1, dtype=dtype)
    values = random_tokens(batch, 9, 33, seed=2, dtype=dtype).transpose(1, 2)
    return random_tokens(batch, 7, 10, dtype=dtype), dense[:, 1:], values


def queries(
    batch: int, num_slots: int, num_tokens: int, dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Queries, and keys without a class token."""
    q = random_tokens(batch, num_slots, dim, dtype=dtype)
    return q, random_tokens(batch, num_tokens + 1, dim, seed=1, dtype=dtype)[:, 1:]


def inputs(
    num_slots: int, num_tokens: int, dtype: torch.dtype = torch.float32, outliers: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and final tokens of three images."""
    q = random_tokens(3, num_slots, 24, dtype=dtype, outliers=outliers)
    k = random_tokens(3, num_tokens, 24, seed=1, dtype=dtype)
    return q, k, random_tokens(3, num_tokens, 5, seed=2, dtype=dtype)


def exact_attention(q: Tensor, k: Tensor) -> Tensor:
    """Each token's softmax over slots, in float64."""
    return slot_logits(q.double(), k.double(), None).softmax(dim=1)
