"""What several selectors share: deterministic ranking, cosines with some of the tokens, means."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.dtypes import acc_dtype
from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.ops.ordering import nan_last

EPS = 1e-8  # smallest norm of a cosine: a token of zeros is similar to nothing, not NaN


def widen(scores: Tensor) -> Tensor:
    """The scores in float32 or wider."""
    return scores.to(acc_dtype(scores.dtype))


def top(scores: Tensor, count: int) -> Tensor:
    """The tokens of highest score, ties to the lowest id, NaN last.

    Args:
        scores: ``[B, N]``.
        count: 0 to N.

    Returns:
        ids int64 ``[B, count]``, ascending.
    """
    none = scores.new_empty((scores.shape[0], 0), dtype=torch.int64)
    if count == 0:
        return none
    ids: Tensor = torch.ops.ocvtp.resolve_picks(none, widen(scores[:, :0]), widen(scores), count)
    return ids


def ranking(scores: Tensor) -> Tensor:
    """All ids by score, highest first, ties to the lowest id, NaN last: ``[B, N]`` -> int64."""
    return nan_last(widen(scores)).argsort(dim=1, descending=True, stable=True)


def membership(ids: Tensor, num_tokens: int) -> Tensor:
    """Whether each token is among the ids: ``[B, K]`` -> bool ``[B, N]``."""
    absent = torch.zeros(ids.shape[0], num_tokens, dtype=torch.bool, device=ids.device)
    return absent.scatter(1, ids, True)


def others(ids: Tensor, num_tokens: int) -> Tensor:
    """The ids that are not there, ascending: distinct ``[B, K]`` -> ``[B, N - K]``."""
    is_there = membership(ids, num_tokens).to(torch.uint8)
    return is_there.argsort(dim=1, stable=True)[:, : num_tokens - ids.shape[1]]


def cosine_with(ids: Tensor, tokens: Tensor) -> Tensor:
    """Cosine similarity of some tokens with all of their image.

    Args:
        ids: int64 ``[B, K]``; tokens: ``[B, N, D]``.

    Returns:
        ``[B, K, N]``, float32 or wider.
    """
    unit = directions(tokens)
    return torch.bmm(gather_tokens(unit, ids), unit.transpose(1, 2))


def directions(tokens: Tensor) -> Tensor:
    """The tokens at norm 1, those of zeros left so: ``[..., D]``, float32 or wider."""
    tokens = widen(tokens)
    return tokens / torch.linalg.vector_norm(tokens, dim=-1, keepdim=True).clamp_min(EPS)


def group_means(tokens: Tensor, assignment: Tensor, count: int) -> Tensor:
    """The mean of the tokens assigned to each of ``count`` groups, 0 of a group without any.

    Args:
        tokens: ``[B, N, C]``.
        assignment: int64 ``[B, N]``, 0 to count - 1; anything else is none.
        count: T.

    Returns:
        ``[B, T, C]``, float32 or wider.
    """
    weight = tokens.new_ones(assignment.shape, dtype=acc_dtype(tokens.dtype))
    sums, mass = torch.ops.ocvtp.scatter_merge(tokens, assignment, weight, count)
    means: Tensor = sums / mass.clamp_min(1)[..., None]
    return means
