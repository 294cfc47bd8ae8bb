"""ApET: the tokens that a few others explain worst, each with those like it merged in."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.checks import require_at_least, require_bool
from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.ops.ordering import nan_last
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, without_autocast
from ocvtp_kernels.selectors.ranking import cosine_with, group_means, top, widen
from ocvtp_kernels.selectors.similarity import squared_distances

DEPENDENT = 1e-10  # of a basis token's norm, what the others leave of it by rounding alone
ROUNDING = 32  # units in the last place of a token's norm, which no error is below


class ApET:
    """Approximation error guided compression, CVPR 2026, arXiv 2602.19870; no attention is read.

    1. Basis: ``num_basis`` tokens by farthest-point greedy on Euclidean distance
       (`ocvtp_kernels.ops.farthest_select`).
    2. A token's information is the norm of what is left of it once its least-squares approximation
       by the basis is taken off, ``|x - B c|``; a token of the basis has none.
    3. The tokens of most information are kept.
    4. Each other token goes to the kept one of largest cosine, the first of equals; a kept token
       becomes the mean of itself and its members. A token that is not finite goes to none.

    The text of the paper that was available gives the steps and the size of the basis. Which token
    the basis begins with (the rule of `farthest_select`) and that the mean is a plain one are our
    reading. Published at a layer of the decoder too.

    Args:
        num_basis: at least 1; at most N count.
        merge: whether step 4 is done.

    Raises:
        ValueError: an argument is out of range.
    """

    place = "encoder"
    needs = frozenset({"final_tokens"})

    def __init__(self, num_basis: int = 10, merge: bool = True) -> None:
        require_at_least("num_basis", num_basis, 1)
        require_bool("merge", merge)
        self.num_basis, self.merge = num_basis, merge

    @without_autocast
    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """Ids ascending, and the tokens where any are merged."""
        tokens = inputs.final_tokens
        basis = torch.ops.ocvtp.farthest_select(
            squared_distances(tokens), None, min(self.num_basis, tokens.shape[1])
        )
        ids = top(approximation_error(tokens, basis), budget)
        return Selected(ids, merge_into(tokens, ids) if self.merge else None)


def approximation_error(tokens: Tensor, basis: Tensor) -> Tensor:
    """How far each token is from the span of some of them, Euclidean.

    Args:
        tokens: ``[B, N, C]``; basis: int64 ``[B, M]``, distinct.

    Returns:
        ``[B, N]``, float32 or wider; 0 where rounding alone leaves more.
    """
    tokens = widen(tokens)
    axes = orthonormal(gather_tokens(tokens, basis).double()).to(tokens.dtype)
    rest = tokens - torch.bmm(torch.bmm(tokens, axes.transpose(1, 2)), axes)
    error, norm = (torch.linalg.vector_norm(each, dim=2) for each in (rest, tokens))
    is_rounding = error <= ROUNDING * torch.finfo(tokens.dtype).eps * norm
    return error.masked_fill(is_rounding, 0)


def orthonormal(rows: Tensor) -> Tensor:
    """An orthonormal basis of the span, by Gram-Schmidt: ``[B, M, C]`` -> ``[B, M, C]``.

    A row that depends on those before it, or is not finite, gives zeros, and nothing is solved that
    could be singular.
    """
    axes = rows[:, :0]
    is_finite = rows.isfinite().all(dim=2, keepdim=True)
    for row in rows.masked_fill(~is_finite, 0).split(1, dim=1):
        left = row
        for _ in range(2):  # once more takes off what rounding has left
            left = left - torch.bmm(torch.bmm(left, axes.transpose(1, 2)), axes)
        norm, whole = (torch.linalg.vector_norm(each, dim=2, keepdim=True) for each in (left, row))
        axis = torch.where(norm > DEPENDENT * whole, left / norm, 0)
        axes = torch.cat([axes, axis], dim=1)
    return axes


def merge_into(tokens: Tensor, ids: Tensor) -> Tensor:
    """The kept tokens ``[B, T, C]``, each the mean of itself and of those most like it."""
    is_finite = tokens.isfinite().all(dim=2)
    assignment = nan_last(cosine_with(ids, tokens)).argmax(dim=1).masked_fill(~is_finite, -1)
    own = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    assignment = assignment.scatter(1, ids, own)
    return group_means(tokens, assignment, ids.shape[1]).to(tokens.dtype)
