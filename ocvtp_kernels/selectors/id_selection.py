"""ID-Selection: tokens of high score, picked one by one while those like them lose theirs."""

from __future__ import annotations

from ocvtp_kernels.checks import require_between
from ocvtp_kernels.selectors.idpruner import select_by_mmr
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, without_autocast
from ocvtp_kernels.selectors.ranking import EPS
from ocvtp_kernels.selectors.scores import needs_of_score, read_score
from ocvtp_kernels.selectors.similarity import cosine

MAX_GAMMA = 1e30  # beyond it scores would have no weight in float32


class IDSelection:
    """Importance and diversity by scores that decay, arXiv 2604.05601.

    Picks the largest ``s_j * exp(-gamma * max(0, max over picks i of cos(tokens_i, tokens_j)))``.
    Its logarithm over ``1 + gamma`` is what `ocvtp_kernels.ops.mmr_select` compares, of ``log(s)``
    at the trade-off ``1 / (1 + gamma)``.

    There is no published code. The text of the paper that was available gives the steps (pick the
    highest score, suppress the scores of similar tokens by an exponential decay) and gamma; that
    the decay is that of the largest similarity to a pick, and no product over picks, is our
    reading.

    Args:
        gamma: 0 to 1e30; 0 leaves the scores alone.
        score: the field of `SelectorInputs` that is the score: "relevance" (the caller's own),
            "importance" or "cls_attention". One that is negative or NaN counts as 0.

    Raises:
        ValueError: an argument is out of range.
    """

    place = "encoder"

    def __init__(self, gamma: float = 20.0, score: str = "cls_attention") -> None:
        require_between("gamma", gamma, 0, MAX_GAMMA)
        self.needs = needs_of_score(score)
        self.gamma, self.score = float(gamma), score

    @without_autocast
    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """Ids ascending, and the order picked."""
        # Of 0 it is -inf and of less NaN, which both come last.
        relevance = read_score(inputs, self.score).log()
        similarity = cosine(inputs.final_tokens, EPS).clamp_(min=0)
        return select_by_mmr(relevance, similarity, budget, 1 / (1 + self.gamma))
