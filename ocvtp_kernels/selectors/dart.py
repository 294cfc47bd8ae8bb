"""DART: of every pivot's tokens those least like it, so that no token repeats another."""

from __future__ import annotations

import torch
from torch import Tensor

from ocvtp_kernels.checks import require_at_least, require_bool, require_size
from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, required, without_autocast
from ocvtp_kernels.selectors.ranking import directions, membership, ranking, top, widen


class DART:
    """Duplication-aware reduction of tokens in the decoder, EMNLP 2025, arXiv 2502.11494.

    1. Image pivots: the ``num_image_pivots`` tokens whose keys have the largest L1 norm, all of
       them kept. Text pivots: the ``num_text_pivots`` tokens of the text behind the images,
       likewise, none of them kept.
    2. Each pivot in turn, those of the image by id, then those of the text, keeps the q tokens left
       with the lowest cosine of hidden states to it, until the budget is full, where ``q =
       ceil((budget - image pivots) / pivots)``.

    Published before the third decoder layer, with the keys of the second and with its hidden states
    behind the language model's last norm. The published order of pivots is that of a set of
    Python's, by their places in the prompt, which is not reproduced.

    Args:
        layer: decoder layer before which tokens are dropped, from 1.
        num_image_pivots: at least 1; the budget if that is less.
        num_text_pivots: at most so many, of the decoder; 0 reads no text. A prompt without text
            behind its images has its last token for one.
        as_published: every pivot keeps as many tokens, ``(budget - image pivots) // pivots``; ids
            end in -1 where that falls short, and these rows of tokens are 0.

    Raises:
        ValueError: an argument is out of range.
    """

    place = "decoder"
    final_norm = True
    needs = frozenset({"final_tokens", "keys"})

    def __init__(
        self,
        layer: int = 2,
        num_image_pivots: int = 4,
        num_text_pivots: int = 4,
        as_published: bool = False,
    ) -> None:
        require_at_least("layer", layer, 1)
        require_at_least("num_image_pivots", num_image_pivots, 1)
        require_at_least("num_text_pivots", num_text_pivots, 0)
        require_bool("as_published", as_published)
        self.layer, self.num_image_pivots, self.num_text_pivots = (
            layer,
            num_image_pivots,
            num_text_pivots,
        )
        self.wants = frozenset({"text_pivots"} if num_text_pivots else ())
        self.exact = not as_published

    @without_autocast
    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """Ids ascending, and the order picked; as published, also the tokens and their count.

        Raises:
            ValueError: text pivots are not as wide as the tokens.
        """
        norms = widen(required(inputs.keys)).abs().sum(dim=2)
        pivots = top(norms, min(self.num_image_pivots, budget))
        similarity = self._similarity(inputs, pivots)
        num_pivots, left = similarity.shape[1], budget - pivots.shape[1]
        share = left // num_pivots if not self.exact else -(-left // num_pivots)
        order, taken = pivots, membership(pivots, norms.shape[1])
        # Above any cosine: NaN at 2, what is taken at 3.
        similarity = similarity.nan_to_num(nan=2.0)
        for row in similarity.unbind(1):
            count = min(share, budget - order.shape[1])
            picked = ranking(-row.masked_fill(taken, 3.0))[:, :count]
            order, taken = torch.cat([order, picked], dim=1), taken.scatter(1, picked, True)
        ids = order.sort(dim=1).values
        if self.exact:
            return Selected(ids, order=order)
        return self._pad(ids, order, inputs.final_tokens, budget)

    def _similarity(self, inputs: SelectorInputs, pivots: Tensor) -> Tensor:
        """Cosines of all pivots with all tokens, ``[B, pivots, N]``."""
        unit, text = directions(inputs.final_tokens), inputs.text_pivots
        rows = gather_tokens(unit, pivots)
        if text is not None and self.num_text_pivots:
            require_size("text_pivots", text, 2, unit.shape[2], "final_tokens")
            rows = torch.cat([rows, directions(text)], dim=1)
        return torch.bmm(rows, unit.to(rows.dtype).transpose(1, 2))

    def _pad(self, ids: Tensor, order: Tensor, tokens: Tensor, budget: int) -> Selected:
        """Ids with -1 and tokens with zeros behind them, up to the budget."""
        batch, count = ids.shape
        missing = budget - count
        found = torch.full((batch,), count, device=ids.device)
        rows = torch.nn.functional.pad(gather_tokens(tokens, ids), (0, 0, 0, missing))
        ids, order = (
            torch.nn.functional.pad(each, (0, missing), value=-1) for each in (ids, order)
        )
        return Selected(ids, rows, order, found)
