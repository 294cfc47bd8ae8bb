"""The object-centric pruner inside the decoder, in falling numbers."""

from __future__ import annotations

from ocvtp_kernels.pruner.pruner import OCPruner
from ocvtp_kernels.selectors.interface import Stage
from ocvtp_kernels.selectors.oc_pruner import PrunerSelector
from ocvtp_kernels.selectors.schedule import Schedule, read_schedule, stages_by


class OCProgressive(PrunerSelector):
    """The object-centric pruner of arXiv 2511.20439, going down in stages as PyramidDrop does.

    Each stage runs the pruner with as many slots as it keeps tokens, on the tokens that are left:
    the first stage keeps what the pruner keeps at that count, each next one a subset of it. The
    slots' own attention fills the gap when two slots pick one token. Not published.

    Args:
        pruner: as of `PrunerSelector`.
        schedule: as of `PyramidDrop`.

    Raises:
        ValueError, TypeError: the pruner is no `OCPruner`, or the schedule none, see
            `read_schedule`.
    """

    place = "decoder"

    def __init__(self, pruner: OCPruner, schedule: Schedule | None = None) -> None:
        super().__init__(pruner, importance=False)
        self.schedule = read_schedule(schedule)

    def stages(self, budget: int, depth: int) -> tuple[Stage, ...]:
        """The schedule's stages.

        Raises:
            ValueError: a decoder of fewer than four layers needs a schedule.
        """
        return stages_by(self, self.schedule, budget, depth)
