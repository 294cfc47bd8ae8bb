"""FastV: the tokens that the prompt's last token attends to."""

from __future__ import annotations

from ocvtp_kernels.checks import require_at_least
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs, required, without_autocast
from ocvtp_kernels.selectors.ranking import top


class FastV:
    """The tokens of most attention in the decoder, ECCV 2024, arXiv 2403.06764.

    Keeps the tokens of largest ``text_attention``, the attention that the prompt's last token pays
    them in the layer before they are dropped, mean over heads. Kept tokens stay at their positions,
    as published.

    Args:
        layer: decoder layer before which tokens are dropped, from 1.

    Raises:
        ValueError: an argument is out of range.
    """

    place = "decoder"
    text_rows = "last"
    text_layer = "before"
    needs = frozenset({"text_attention"})

    def __init__(self, layer: int = 2) -> None:
        require_at_least("layer", layer, 1)
        self.layer = layer

    @without_autocast
    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """Ids ascending."""
        return Selected(top(required(inputs.text_attention), budget))
