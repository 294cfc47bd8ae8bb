"""One set of arguments per op, awkward on purpose, for the checks that every op must pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels.selectors.similarity import cosine
from tests.cases import random_pruner, random_tokens

Arguments = tuple[Any, ...]


def _qkv(batch: int, dtype: torch.dtype, num_slots: int = 7, num_tokens: int = 33) -> list[Tensor]:
    dense = random_tokens(batch, num_tokens + 1, 10, seed=1, dtype=dtype)
    return [
        random_tokens(batch, num_slots, 10, dtype=dtype),
        dense[:, 1:],
        random_tokens(batch, 9, num_tokens, seed=2, dtype=dtype).transpose(1, 2),
    ]


def slot_attention(batch: int = 2, dtype: torch.dtype = torch.float32) -> Arguments:
    mask = torch.ones(batch, 7, dtype=torch.bool)
    mask[:, 2] = False
    return *_qkv(batch, dtype), 0.3, 1e-5, mask


def slot_attention_backward(batch: int = 2, dtype: torch.dtype = torch.float32) -> Arguments:
    q, k, v, scale, eps, mask = slot_attention(batch, dtype)
    shapes = [(batch, 7, 9), (batch, 9, 7), (batch, 7), (batch, 7, 33)]
    updates, grad, mass, attention = (
        random_tokens(*shape, seed=3 + i, dtype=dtype) for i, shape in enumerate(shapes)
    )
    return q, k, v, scale, eps, mask, updates, grad.transpose(1, 2), mass, attention


def gru_cell(batch: int = 2, dtype: torch.dtype = torch.float32) -> Arguments:
    shapes = [(batch, 7, 9), (batch, 7, 5), (15, 9), (15, 5), (15,), (15,)]
    return tuple(random_tokens(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes))


def gru_cell_backward(batch: int = 2, dtype: torch.dtype = torch.float32) -> Arguments:
    return *gru_cell(batch, dtype), random_tokens(batch, 5, 7, seed=6, dtype=dtype).transpose(1, 2)


def slot_attention_step(batch: int = 2, dtype: torch.dtype = torch.float32) -> Arguments:
    weights = [w.detach() for w in random_pruner(dtype=dtype).aggregat.step_weights()]
    q, k, v = _qkv(batch, dtype)
    return q, k, torch.cat([v, v[..., :1]], dim=-1), weights, 0.3


def slot_argmax(batch: int = 2, dtype: torch.dtype = torch.float32) -> Arguments:
    q, k, _ = _qkv(batch, dtype)
    return q, k, 0.3


def resolve_picks(batch: int = 2, dtype: torch.dtype = torch.float32) -> Arguments:
    picks = torch.randint(0, 12, (batch, 7, 2), generator=torch.Generator().manual_seed(0))
    return picks, random_tokens(batch, 7, dtype=dtype), random_tokens(batch, 12, dtype=dtype), 9


def argmax_gather(batch: int = 2, dtype: torch.dtype = torch.float32) -> Arguments:
    q, k, v = _qkv(batch, dtype)
    return q, k, v, None, 5


def attention_received(batch: int = 2, dtype: torch.dtype = torch.float32) -> Arguments:
    heads = random_tokens(batch, 13, 3, 8, dtype=dtype).transpose(1, 2)
    return heads, heads.flip(-1), "meanq"


def merge(batch: int = 2, dtype: torch.dtype = torch.float32) -> Arguments:
    q, k, v = _qkv(batch, dtype)
    return q, k, v


def prune(batch: int = 2, dtype: torch.dtype = torch.float32) -> Arguments:
    pruner = random_pruner(dtype=dtype)
    reference = random_tokens(batch, 34, 12, dtype=dtype)[:, 1:]
    final = random_tokens(batch, 34, 6, seed=1, dtype=dtype)[:, 1:]
    slots = pruner.sample_slots(batch, 7).detach()
    return reference, final, pruner.packed(), slots, None, 7


def prune_picks(batch: int = 2, dtype: torch.dtype = torch.float32) -> Arguments:
    reference, _, weights, slots, _, _ = prune(batch, dtype)
    return reference, weights, slots, 2


def _similarity(batch: int, dtype: torch.dtype, num_tokens: int = 30) -> Tensor:
    tokens = random_tokens(batch, num_tokens, 6, seed=4)
    return cosine(tokens).to(dtype).transpose(1, 2)


def farthest_select(batch: int = 2, dtype: torch.dtype = torch.float32) -> Arguments:
    return 1 - _similarity(batch, dtype), None, 9


def pivot_select(batch: int = 2, dtype: torch.dtype = torch.float32) -> Arguments:
    return random_tokens(batch, 31, 10, dtype=dtype)[:, 1:], 4


def centrifugal_select(batch: int = 2, dtype: torch.dtype = torch.float32) -> Arguments:
    pivots = torch.tensor([[3, 17, 29]]).repeat(batch, 1)
    return _similarity(batch, dtype), pivots, 5, 6, 11


def dpp_select(batch: int = 2, dtype: torch.dtype = torch.float32) -> Arguments:
    # No more picks than the rank of the matrix: past it rounding alone decides.
    return _similarity(batch, dtype), random_tokens(batch, 30, seed=5, dtype=dtype).abs(), 6


facility_select = dpp_select


def match_select(batch: int = 2, dtype: torch.dtype = torch.float32) -> Arguments:
    generator = torch.Generator().manual_seed(6)
    ranked = torch.rand(batch, 30, generator=generator).argsort(dim=1)[:, :23]
    return _similarity(batch, dtype), ranked, 6, 4


def scatter_merge(batch: int = 2, dtype: torch.dtype = torch.float32) -> Arguments:
    tokens = random_tokens(batch, 31, 10, dtype=dtype)[:, 1:]
    owner = torch.randint(-1, 7, (batch, 30), generator=torch.Generator().manual_seed(7))
    return tokens, owner, random_tokens(batch, 30, seed=8, dtype=dtype), 7


def channel_variance(batch: int = 2, dtype: torch.dtype = torch.float32) -> Arguments:
    return (random_tokens(batch, 31, 10, dtype=dtype)[:, 1:],)


ARGUMENTS: dict[str, Callable[..., Arguments]] = {
    "slot_attention": slot_attention,
    "slot_attention_with_attention": slot_attention,
    "slot_attention_backward": slot_attention_backward,
    "gru_cell": gru_cell,
    "gru_cell_backward": gru_cell_backward,
    "slot_attention_step": slot_attention_step,
    "slot_argmax": slot_argmax,
    "resolve_picks": resolve_picks,
    "argmax_gather": argmax_gather,
    "attention_received": attention_received,
    "merge": merge,
    "prune": prune,
    "prune_picks": prune_picks,
    "farthest_select": farthest_select,
    "pivot_select": pivot_select,
    "centrifugal_select": centrifugal_select,
    "dpp_select": dpp_select,
    "facility_select": facility_select,
    "match_select": match_select,
    "scatter_merge": scatter_merge,
    "channel_variance": channel_variance,
}


def op(name: str) -> Any:
    """The op's default overload."""
    return getattr(torch.ops.ocvtp, name).default


def outputs(result: Any) -> tuple[Tensor, ...]:
    """An op's outputs as a tuple."""
    return (result,) if isinstance(result, Tensor) else tuple(result)
