"""Random tokens: the baseline of every selector."""

from __future__ import annotations

from ocvtp_kernels.checks import require_int
from ocvtp_kernels.pruner.seeded import rank
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, without_autocast


class RandomSelector:
    """Keeps tokens at random.

    The selection depends on the seed and the number of tokens alone, so an image keeps the same
    tokens on every call, alone or in a batch.

    Args:
        seed: of the random ranks.
    """

    place = "encoder"
    needs = frozenset({"reference_tokens"})
    wants = frozenset({"valid"})

    def __init__(self, seed: int = 0) -> None:
        require_int("seed", seed)
        self.seed = seed

    @without_autocast
    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """Ids int64 ``[B, budget]``; each image must have that many valid tokens."""
        batch, num_tokens, _ = inputs.reference_tokens.shape
        scores = rank(inputs.reference_tokens, self.seed, num_tokens).expand(batch, -1)
        if inputs.valid is not None:
            scores = scores.masked_fill(~inputs.valid, -1.0)
        return Selected(scores.topk(budget, dim=1).indices.sort(dim=1).values)
