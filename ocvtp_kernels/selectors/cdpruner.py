"""CDPruner: diverse tokens by a determinantal point process, conditioned on the question."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ocvtp_kernels.checks import require_bool
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, without_autocast
from ocvtp_kernels.selectors.ranking import EPS, directions
from ocvtp_kernels.selectors.similarity import cosine

MIN_QUALITY = 1e-6  # of the published code: of the least relevant token, times the range


class CDPruner:
    """Conditional diversity by a determinantal point process, NeurIPS 2025, arXiv 2506.10967.

    1. Relevance: ``r_i = cos(text_tokens_i, text)``.
    2. Quality: ``q = (r - min + 1e-6) / (max - min)`` over the image's tokens; 1 if there is no
       text, or if relevance is the same everywhere.
    3. Greedy MAP inference on ``q_i cos(tokens_i, tokens_j) q_j``
       (`ocvtp_kernels.ops.dpp_select`).

    Published between projector and language model, relevance in the space of CLIP.

    Args:
        as_published: relevance has its sign flipped, so that the least similar tokens count most,
            and its range is that of the whole batch, which couples images.
    """

    place = "projector"
    needs = frozenset({"final_tokens"})
    wants = frozenset({"text", "text_tokens"})

    def __init__(self, as_published: bool = False) -> None:
        require_bool("as_published", as_published)
        self.as_published = as_published

    @without_autocast
    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """Ids ascending, and the order picked.

        Raises:
            ValueError: text without tokens in its space, or of another width.
        """
        similarity = cosine(inputs.final_tokens, EPS)
        # Exactly 1 (0 of a token of zeros), so that no rounding decides between equal qualities.
        similarity.diagonal(dim1=1, dim2=2).round_()
        quality = self._quality(inputs.text, inputs.text_tokens)
        if quality is None:
            quality = similarity.new_ones(similarity.shape[:2])
        order = torch.ops.ocvtp.dpp_select(similarity, quality, budget)
        return Selected(order.sort(dim=1).values, order=order)

    def _quality(self, text: Tensor | None, text_tokens: Tensor | None) -> Tensor | None:
        """``[B, N]``, or None without text."""
        if text is None:
            return None
        text_tokens = require_text_tokens(text, text_tokens)
        relevance = (directions(text_tokens) * directions(text)[:, None]).sum(dim=2)
        if self.as_published:
            relevance = -relevance
        # An empty batch has no range.
        dims = (0, 1) if self.as_published and len(relevance) else (1,)
        is_nan = relevance.isnan()
        low = relevance.masked_fill(is_nan, math.inf).amin(dim=dims, keepdim=True)
        span = relevance.masked_fill(is_nan, -math.inf).amax(dim=dims, keepdim=True) - low
        return torch.where(span > 0, (relevance - low + MIN_QUALITY) / span, 1.0)


def require_text_tokens(text: Tensor, text_tokens: Tensor | None) -> Tensor:
    """The tokens in the text's space.

    Raises:
        ValueError: there are none, or they are not as wide as the text.
    """
    if text_tokens is None:
        raise ValueError(f"text_tokens: needed beside text of width {text.shape[1]}, got none")
    if text_tokens.shape[2] != text.shape[1]:
        raise ValueError(
            f"text_tokens: expected width {text.shape[1]} to match text, "
            f"got shape {list(text_tokens.shape)}"
        )
    return text_tokens
