"""One call's choice of tokens: begun inside the vision encoder, finished behind it.

On CUDA what is begun runs on a stream of its own, under the layers that remain.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from ocvtp_kernels.selectors.interface import Evidence, Finish, Selected, Selector, begin
from ocvtp_kernels.vlm.handle import Handle, Options


class Choice:
    """What a selector keeps of the images of one call, group by group of equal counts.

    Args:
        selector: who chooses.
        handle: takes the time as the stage "pruner".
        device: of the tokens.
        options: ``overlap`` and ``timed``; stages that overlapped would have no times of their own.
    """

    def __init__(
        self, selector: Selector, handle: Handle, device: torch.device, options: Options
    ) -> None:
        self._selector, self._handle, self._device = selector, handle, device
        self._aside = _Aside(device, options.overlap and not options.timed)
        self._waiting: list[Finish] = []

    def begin(self, reference_tokens: Tensor, budget: int) -> None:
        """Starts on a group ``[B, N, C]``, of which ``budget`` tokens an image are kept."""
        with self._handle.stage("pruner", self._device), self._aside.work(reference_tokens):
            self._waiting.append(begin(self._selector, reference_tokens, budget))

    def finish(self, evidence: Evidence | None = None, group: int = 0) -> Selected:
        """What is kept of a group, in the order they were begun.

        Args:
            evidence: None is enough where the selector chooses early.
        """
        self._aside.join()
        with self._handle.stage("pruner", self._device):
            return self._waiting[group](evidence)


class _Aside:
    """A stream beside the current one; where there is none, work is simply done in its place.

    Results may be read on the current stream after `join`, and freed at any time: their memory is
    given to nobody but later work aside, which starts behind all that was queued before it.
    """

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self._streams: tuple[torch.cuda.Stream, torch.cuda.Stream] | None = None
        if enabled and device.type == "cuda":
            current = torch.cuda.current_stream(device)
            self._streams = current, _stream_beside(device, current.cuda_stream)
        self._held: list[Tensor] = []

    @contextmanager
    def work(self, *inputs: Tensor) -> Iterator[None]:
        """What is queued within runs beside what is queued after it, and may read ``inputs``."""
        if self._streams is None:
            yield
            return
        current, beside = self._streams
        beside.wait_stream(current)
        # Freed before the join, their memory would be written again while it is still read.
        self._held += inputs
        with torch.cuda.stream(beside):
            yield

    def join(self) -> None:
        """Makes the current stream, not the host, wait for the work."""
        if self._streams is not None and self._held:
            current, beside = self._streams
            current.wait_stream(beside)
            self._held.clear()


@lru_cache(64)
def _stream_beside(device: torch.device, _current: int) -> torch.cuda.Stream:
    """One for each current stream, so that no two of them share what was freed aside."""
    return torch.cuda.Stream(device)
