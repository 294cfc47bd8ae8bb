"""Selection on the native kernels: C++ on the CPU, CUDA C++ on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.dtypes import as_copied
from ocvtp_kernels.native import dense_rows

MAX_PACKED_SLOTS = 2048  # on a GPU: their packed picks are in shared memory


def select(
    q: Tensor,
    k: Tensor,
    constant: Tensor | None,
    scale: float,
    final_tokens: Tensor,
    importance: Tensor | None,
    budget: int,
    top_k: int,
) -> tuple[Tensor, Tensor]:
    """Kept tokens ``[B, T, C]`` and ids ``[B, T]`` by ``logits = scale q k^T + constant``."""
    native, dtype = torch.ops.ocvtp_native, final_tokens.dtype
    final_tokens = dense_rows(as_copied(final_tokens))
    own = importance is None
    # On a GPU the kernel that resolves takes the best over the tiles of tokens too: a launch less.
    if q.device.type == "cuda" and top_k == 1 and q.shape[1] <= MAX_PACKED_SLOTS:
        packed, token_score = native.slot_argmax_packed(q, k, constant, scale, own)
        padding = token_score if own else importance
        tokens, ids = native.resolve_gather_packed(packed, padding, final_tokens, budget)
        return tokens if tokens.dtype == dtype else tokens.view(dtype), ids
    topk_ids, max_logprob, token_score = native.slot_argmax(q, k, constant, scale, top_k, own)
    padding = token_score if own else importance
    tokens, ids = native.resolve_gather(topk_ids, max_logprob, padding, final_tokens, budget)
    return tokens if tokens.dtype == dtype else tokens.view(dtype), ids
