"""The handle of an attached selector, which takes it off again, and the options of `attach`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ocvtp_kernels.vlm.intercept import remove_intercepts
from ocvtp_kernels.vlm.replaced import Attachment, Replaced, Replacement, require_replaceable

# What happens to LLaVA-NeXT's and -OneVision's newline tokens; the other models have none.
NEWLINES = ("drop", "all")
# Where kept tokens, and all behind them, stand in the language model.
POSITIONS = ("consecutive", "original")
_UNTIMED = nullcontext()
_HANDLE = "_ocvtp_handle"  # an attribute of the model, so that copies of it carry theirs


class Options(NamedTuple):
    """The options of `attach`, without the budget."""

    reference_layer: int | None = None  # encoder layer the decision is made on; None: by the depth
    timed: bool = False  # whether the seconds of every stage are taken
    newlines: str = "drop"  # one of NEWLINES
    skip_unused_layers: bool = True  # `savings`: whether the encoder omits what no kept token needs
    overlap: bool = True  # whether, on CUDA, the selector runs in parallel to later encoder layers
    positions: str | None = None  # one of POSITIONS; None: original ones, where there can be


Ids = Tensor | list[Tensor]  # int64 [images, T], or [T_i] an image; ascending


class LastCall(NamedTuple):
    """What the call that ended last kept."""

    ids: Ids
    times: dict[str, float]  # seconds by stage: encoder, pruner, projector; empty if not timed
    # Of a method in the decoder: before which layer, and the ids kept from there on; the last ones
    # are `ids`.
    stages: list[tuple[int, Ids]]
    # int64 [images, N], of a method that merges: the kept token, 0 to T - 1, that each one is in.
    groups: Tensor | None = None


class Handle:
    """A selector attached to a model and its processor.

    `remove` takes it off, and so does leaving a ``with`` block. A deep copy or a pickle of the
    model has a handle of its own, see `of`.

    Args:
        timed: whether calls take the times of their stages. On CUDA they are read from events, and
            so cost a wait when `last` is read, none before.
    """

    def __init__(self, timed: bool = False) -> None:
        self.timed = timed
        self._attachment = Attachment()
        self._replaced: list[Replaced] = []
        self._last: CallRecord | None = None

    @staticmethod
    def of(model: Any) -> Handle | None:
        """The handle of the selector that is attached to a model, or None."""
        unwrap = getattr(model, "get_base_model", None)
        model = unwrap() if callable(unwrap) else model
        for part in (model, getattr(model, "base_model", None)):
            handle = getattr(part, _HANDLE, None)
            if isinstance(handle, Handle):
                return handle
        return None

    @property
    def last(self) -> LastCall | None:
        """What the call that ended last kept, or None before the first image."""
        last = self._last
        if last is None:
            return None
        return LastCall(last.ids, last.times, last.stages, last.groups)

    def begin(self) -> CallRecord:
        """The record of a call, which `last` returns once it is finished."""
        return CallRecord(self)

    def replace_methods(self, *replacements: Replacement) -> None:
        """Replaces methods of single objects, all or none of them, until `remove`.

        The signature stays the old one's, as transformers chooses arguments by it.

        Raises:
            ValueError: a method is not there, or was already replaced by a handle.
        """
        for owner, name, _ in replacements:
            require_replaceable(owner, name)
        self._replaced = [Replaced(each, self._attachment) for each in replacements]
        for replaced in self._replaced:
            replaced.set()
        for model in self._models():
            setattr(model, _HANDLE, self)

    def remove(self) -> None:
        """Restores the model and the processor exactly; a second call does nothing."""
        self._attachment.active = False
        for model in self._models():
            remove_intercepts(model)
            vars(model).pop(_HANDLE, None)
        for replaced in reversed(self._replaced):
            replaced.restore()
        self._replaced = []

    def _models(self) -> list[nn.Module]:
        """The model objects that have replaced methods, each once."""
        owners = {id(each.owner): each.owner for each in self._replaced}
        return [owner for owner in owners.values() if isinstance(owner, nn.Module)]

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_error: object) -> None:
        self.remove()

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model alone does not take the processor along. That a processor copied with
        # it prunes no more once the copy is removed is told by the attachment that they share.
        of_model = [each for each in self._replaced if isinstance(each.owner, nn.Module)]
        return vars(self) | {"_replaced": of_model, "_last": None}


class CallRecord:
    """The stages of one call, and what it keeps.

    Attributes:
        ids, stages, groups: as those of `LastCall`, once `finish` was called.
    """

    ids: Ids
    stages: list[tuple[int, Ids]]
    groups: Tensor | None

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._timings: dict[str, list[Callable[[], float]]] = {}
        self._nested: list[list[Callable[[], float]]] = []

    @property
    def times(self) -> dict[str, float]:
        """Seconds by stage; on CUDA waits for the stages."""
        return {stage: sum(read() for read in reads) for stage, reads in self._timings.items()}

    def fork(self) -> CallRecord:
        """A record that has the stages up to now."""
        record = CallRecord(self._handle)
        record._timings = {stage: list(reads) for stage, reads in self._timings.items()}
        return record

    def finish(
        self, ids: Ids, stages: Sequence[tuple[int, Ids]] = (), groups: Tensor | None = None
    ) -> None:
        """Makes `Handle.last` return this call."""
        self.ids, self.stages, self.groups = ids, list(stages), groups
        self._handle._last = self

    def stage(self, name: str, device: torch.device) -> AbstractContextManager[None]:
        """Times a block as the stage ``name``, without the stages inside; free if not timed.

        Several blocks of a name add up.
        """
        return self._timed(name, device) if self._handle.timed else _UNTIMED

    @contextmanager
    def _timed(self, name: str, device: torch.device) -> Iterator[None]:
        inner: list[Callable[[], float]] = []
        self._nested.append(inner)
        start = _now(device)
        try:
            yield
        finally:
            self._nested.pop()
        total = functools.partial(_seconds, start, _now(device))
        if self._nested:
            self._nested[-1].append(total)
        own = self._timings.setdefault(name, [])
        own.append(lambda: total() - sum(read() for read in inner))


def _now(device: torch.device) -> float | torch.cuda.Event:
    """A moment of the host's clock; on CUDA an event on the current stream."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(start: Any, stop: Any) -> float:
    """The time between two moments of a device; on CUDA waits for the later one."""
    if isinstance(start, float):
        return float(stop - start)
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1000
