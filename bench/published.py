"""The published implementation of arXiv 2511.20439, as a baseline.

Written from the published description: float32, one image at a time, keys and values projected, all
three iterations complete, picks fetched to the host, a Python set, padding through a set that is
built again for every token. Initial slots and the attention scores for padding are inputs, so that
all variants compute the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels import OCPruner


def padded_ids(attention: Tensor, scores: Tensor, budget: int) -> list[int]:
    """Ids kept of one image, ascending: attention ``[1, K, N]``, scores ``[1, N]``."""
    picked = set()
    for slot in attention[0].topk(1, dim=-1).indices.tolist():
        picked.update(slot)
    if len(picked) > budget:
        picked = set(list(picked)[:budget])
    if len(picked) < budget:
        chosen = sorted(picked)
        order = scores[0].argsort(descending=True).tolist()
        spare = [token for token in order if token not in set(chosen)]
        picked.update(spare[: budget - len(picked)])
    return sorted(picked)


@torch.no_grad()
def published_prune(
    pruner: OCPruner,
    reference_tokens: Tensor,
    final_tokens: Tensor,
    slots_init: Tensor,
    scores: Tensor,
    budget: int,
) -> tuple[Tensor, Tensor]:
    """Kept tokens ``[B, T, C]`` and ids ``[B, T]``.

    Args:
        pruner: plain, in float32.
        reference_tokens: ``[B, N, C_in]``; final_tokens: ``[B, N, C]``.
        slots_init: ``[B, K, D]``.
        scores: ``[B, N]``, the attention that pads; budget: T.
    """
    tokens, ids = [], []
    for image in range(reference_tokens.shape[0]):
        one = slice(image, image + 1)
        tokens_in = reference_tokens[one].float()
        _, attention = pruner.attend(tokens_in, slots_init[one].float())
        kept = padded_ids(attention, scores[one], budget)
        rows = torch.tensor(kept, dtype=torch.int64, device=final_tokens.device)
        tokens.append(final_tokens[image].index_select(0, rows))
        ids.append(rows)
    return torch.stack(tokens), torch.stack(ids)
