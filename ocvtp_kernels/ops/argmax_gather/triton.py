"""Launches the whole selection: argmax, then resolve and gather in one launch."""

from __future__ import annotations

from torch import Tensor

from ocvtp_kernels.ops.resolve_picks.triton import resolve
from ocvtp_kernels.ops.slot_argmax.triton import args_of, packed_topk_of
from ocvtp_kernels.ops.slot_attention.triton.forward import SlotAttentionArgs
from ocvtp_kernels.triton_common.launch import unit_stride


def argmax_gather(
    q: Tensor,
    k: Tensor,
    final_tokens: Tensor,
    importance: Tensor | None,
    budget: int,
    scale: float | None = None,
    top_k: int = 1,
) -> tuple[Tensor, Tensor]:
    """`ocvtp::argmax_gather` in two launches at ``top_k`` 1."""
    return select(args_of(q, k, scale), final_tokens, importance, budget, top_k)


def select(
    args: SlotAttentionArgs,
    final_tokens: Tensor,
    importance: Tensor | None,
    budget: int,
    top_k: int,
    stats: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The last iteration's slots and tokens to kept tokens ``[B, T, C]`` and ids ``[B, T]``.

    Without importance the tokens' own scores pad. ``stats`` is as in `packed_topk_of`.
    """
    packed_topk, token_score = packed_topk_of(args, top_k, importance is None, stats)
    padding = token_score if importance is None else unit_stride(importance)
    batch, num_tokens, width = final_tokens.shape
    tokens = final_tokens.new_empty((batch, budget, width))
    ids = packed_topk.new_empty((batch, budget))
    final_tokens = unit_stride(final_tokens)
    resolve(packed_topk, None, padding, num_tokens, budget, ids, final_tokens, tokens, top_k)
    return tokens, ids
