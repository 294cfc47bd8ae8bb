"""PyramidDrop: the tokens that the prompt's last token attends to, in falling numbers."""

from __future__ import annotations

from ocvtp_kernels.selectors.interface import (
    Selected,
    SelectorInputs,
    Stage,
    required,
    without_autocast,
)
from ocvtp_kernels.selectors.ranking import top
from ocvtp_kernels.selectors.schedule import Schedule, read_schedule, stages_by


class PyramidDrop:
    """Tokens dropped in stages by attention in the decoder, CVPR 2025, arXiv 2410.17247.

    Each stage keeps the tokens of largest ``text_attention``: what the prompt's last token would
    pay them in the layer behind the drop, by that layer's own queries and keys, mean over heads.
    Before layers ``depth // 4``, ``depth // 2`` and ``3 * depth // 4`` it keeps 4, 2 and 1 times
    the budget, or what there is if that is less: the published halves, of any number of tokens.

    Published with 0.5, 0.25 and 0.125 of the tokens before layers 8, 16 and 24 of 32, and with the
    positions counted anew at every stage.

    Args:
        schedule: pairs of a layer and a count instead; an image of no more tokens than the budget
            is left alone, whatever the last count is.

    Raises:
        ValueError, TypeError: the schedule is none, see `read_schedule`.
    """

    place = "decoder"
    text_rows = "last"
    text_layer = "behind"
    needs = frozenset({"text_attention"})

    def __init__(self, schedule: Schedule | None = None) -> None:
        self.schedule = read_schedule(schedule)

    def stages(self, budget: int, depth: int) -> tuple[Stage, ...]:
        """The schedule's stages.

        Raises:
            ValueError: a decoder of fewer than four layers needs a schedule.
        """
        return stages_by(self, self.schedule, budget, depth)

    @without_autocast
    def __call__(self, inputs: SelectorInputs, budget: int) -> Selected:
        """One stage: ids ascending."""
        return Selected(top(required(inputs.text_attention), budget))
