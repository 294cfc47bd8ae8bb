"""One call's selection of tokens: started inside the vision encoder, finished after it.

On CUDA the first part runs on a side stream, in parallel to the remaining encoder layers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import (
    FinishSelection,
    Selected,
    Selector,
    SelectorInputs,
    start_selector,
)
from ocvtp_kernels.vlm.handle import CallRecord, Options


class PendingSelection:
    """What a selector keeps of the images of one call, group by group of equal counts.

    Args:
        selector: chooses the tokens.
        record: of the call; takes the time as the stage "pruner".
        device: of the tokens.
        options: ``overlap``, which ``timed`` turns off, as overlapping stages cannot be timed.
    """

    def __init__(
        self, selector: Selector, record: CallRecord, device: torch.device, options: Options
    ) -> None:
        self._selector, self._record, self._device = selector, record, device
        self._side = SideStream(device, options.overlap and not options.timed)
        self._pending: list[FinishSelection] = []

    def start(self, reference_tokens: Tensor, budget: int) -> None:
        """Starts a group ``[B, N, C]``, of which ``budget`` tokens an image are kept."""
        with self._record.stage("pruner", self._device), self._side.work(reference_tokens):
            self._pending.append(start_selector(self._selector, reference_tokens, budget))

    def finish(self, inputs: SelectorInputs | None = None, group: int = 0) -> Selected:
        """What is kept of the group that was started as number ``group``.

        Args:
            inputs: of the group; None is enough where the selector reads reference tokens alone.
        """
        self._side.join()
        with self._record.stage("pruner", self._device):
            return self._pending[group](inputs)


class SideStream:
    """A stream beside the current one; on other devices than CUDA, and if not ``enabled``, none.

    Results may be read on the current stream after `join`, and freed at any time: their memory is
    reused by later work on the side stream alone, which waits for all that was queued before it.
    """

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self._streams: tuple[torch.cuda.Stream, torch.cuda.Stream] | None = None
        if enabled and device.type == "cuda":
            current = torch.cuda.current_stream(device)
            self._streams = current, _side_stream(device, current.cuda_stream)
        self._held: list[Tensor] = []

    def work(self, *tensors: Tensor) -> AbstractContextManager[Any]:
        """Queues the block's work, which may read ``tensors``, on the side stream."""
        if self._streams is None:
            return nullcontext()
        current, side = self._streams
        side.wait_stream(current)
        # Freed before the join, their memory would be overwritten while it is still read.
        self._held += tensors
        return torch.cuda.stream(side)

    def join(self) -> None:
        """Makes the current stream, not the host, wait for the side stream."""
        if self._streams is not None and self._held:
            current, side = self._streams
            current.wait_stream(side)
            self._held.clear()


@lru_cache(64)
def _side_stream(device: torch.device, _current: int) -> torch.cuda.Stream:
    """One for each current stream, so that no two of them share memory freed on the side stream."""
    return torch.cuda.Stream(device)
