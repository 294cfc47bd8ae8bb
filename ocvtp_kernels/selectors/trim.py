"""TRIM: the tokens that the question is about, and the mean of the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.checks import require_bool
from ocvtp_kernels.selectors.cdpruner import require_text_tokens
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, required, without_autocast
from ocvtp_kernels.selectors.ranking import membership, top, widen


class TRIM:
    """Tokens by similarity with the text, COLING 2025, arXiv 2409.10994.

    Keeps the tokens of largest ``text_tokens_i . text``, not normalised; ``extra`` ``[B, 1, C]`` is
    the mean of the dropped ones, beyond the budget, and None where none is dropped.

    Args:
        as_published: keeps the least similar tokens instead.
    """

    place = "encoder"
    needs = frozenset({"text", "text_tokens", "final_tokens"})

    def __init__(self, as_published: bool = False) -> None:
        require_bool("as_published", as_published)
        self.as_published = as_published

    @without_autocast
    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """Ids ascending.

        Raises:
            ValueError: text and tokens differ in width.
        """
        text, tokens = required(inputs.text), inputs.final_tokens
        text_tokens = require_text_tokens(text, inputs.text_tokens)
        scores = (widen(text_tokens) * widen(text)[:, None]).sum(dim=2)
        ids = top(-scores if self.as_published else scores, budget)
        if budget == tokens.shape[1]:
            return Selected(ids)
        dropped = torch.ones_like(scores)
        sums, mass = merge_dropped(tokens, ids, dropped)
        return Selected(ids, extra=(sums / mass[..., None]).to(tokens.dtype))


def merge_dropped(tokens: Tensor, ids: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted sum of the tokens that are not kept.

    Args:
        tokens: ``[B, N, C]``; ids: ``[B, T]``, kept; weight: ``[B, N]``.

    Returns:
        sums ``[B, 1, C]`` and the sum of the weights ``[B, 1]``, float32 or wider.
    """
    assignment = -membership(ids, tokens.shape[1]).to(torch.int64)
    sums, mass = torch.ops.ocvtp.scatter_merge(tokens, assignment, weight, 1)
    return sums, mass
