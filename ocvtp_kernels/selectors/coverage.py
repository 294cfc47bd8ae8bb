"""How well kept tokens stand for all of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ocvtp_kernels.ops.argmax_gather import gather_tokens


def coverage(tokens: Tensor, ids: Tensor) -> Tensor:
    """How well every token is explained by its nearest kept token, on average.

    ``mean over n of max over kept t of cos(token_n, token_t)``; 1 means that nothing is lost.

    Args:
        tokens: ``[B, N, C]``, all tokens; ids: int64 ``[B, T]``, the kept ones.

    Returns:
        ``[B]`` in [-1, 1], float32 or wider.
    """
    unit = F.normalize(tokens if tokens.dtype == torch.float64 else tokens.float(), dim=-1)
    return torch.matmul(unit, gather_tokens(unit, ids).transpose(1, 2)).amax(dim=-1).mean(dim=-1)


def random_coverage(tokens: Tensor, budget: int, seeds: int = 20) -> Tensor:
    """Coverage of ``budget`` tokens chosen at random, for each of the seeds 0, 1, ...

    Args:
        tokens: ``[N, C]``, one image's tokens.

    Returns:
        ``[seeds]``.
    """
    draws = []
    for seed in range(seeds):
        generator = torch.Generator("cpu").manual_seed(seed)
        order = torch.randperm(tokens.shape[0], generator=generator, device="cpu")
        draws.append(order[:budget])
    ids = torch.stack(draws).to(tokens.device)
    return coverage(tokens.expand(seeds, -1, -1), ids)
