"""The handle of an attached selector, which takes it off again, and the options of `attach`."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor

# What happens to LLaVA-NeXT's newline tokens; the other models have none.
NEWLINES = ("drop", "all")
_OURS = "_ocvtp_attached"

Method = Callable[..., Any]
# An object, the name of its method, and what runs instead: it is called with the method as it was,
# the object, and the arguments of the call by name.
Replacement = tuple[Any, str, Callable[[Method, Any, dict[str, Any]], Any]]


class Options(NamedTuple):
    """The options of `attach`, without the budget."""

    reference_layer: int | None = None  # encoder layer the decision is made on; None: depth // 3
    timed: bool = False  # whether the seconds of every stage are taken
    newlines: str = "drop"  # one of NEWLINES
    skip_unused_layers: bool = True  # `savings`: whether the encoder omits what no kept token needs
    overlap: bool = True  # whether, on CUDA, the selector runs in parallel to later encoder layers


class LastCall(NamedTuple):
    """What the latest call of the vision encoder kept."""

    ids: Tensor | list[Tensor]  # int64 [images, T], or [T_i] an image; ascending
    times: dict[str, float]  # seconds by stage: encoder, pruner, projector; empty if not timed


class Handle:
    """A selector attached to a model and its processor.

    `remove` takes it off, and so does leaving a ``with`` block.

    Args:
        timed: whether `stage` takes times. On CUDA they are read from events, and so cost a wait
            when `last` is read, none before.
    """

    def __init__(self, timed: bool = False) -> None:
        self.timed = timed
        self._undo = ExitStack()
        self._ids: Tensor | list[Tensor] | None = None
        self._timings: dict[str, list[Callable[[], float]]] = {}
        self._running_timings: dict[str, list[Callable[[], float]]] = {}
        self._nested: list[list[Callable[[], float]]] = []

    @property
    def last(self) -> LastCall | None:
        """What the latest call kept, or None before the first image."""
        if self._ids is None:
            return None
        times = {stage: sum(read() for read in timings) for stage, timings in self._timings.items()}
        return LastCall(self._ids, times)

    def record(self, ids: Tensor | list[Tensor]) -> None:
        """Makes `last` return ``ids`` and the stages timed since the previous record."""
        self._ids = ids
        self._timings, self._running_timings = self._running_timings, {}

    @contextmanager
    def stage(self, name: str, device: torch.device) -> Iterator[None]:
        """Times a block as the stage ``name``, without the stages inside it; free if not `timed`.

        Several blocks of a name add up.
        """
        if not self.timed:
            yield
            return
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
        own = self._running_timings.setdefault(name, [])
        own.append(lambda: total() - sum(read() for read in inner))

    def replace_methods(self, *replacements: Replacement) -> None:
        """Replaces methods of single objects, all or none of them, until `remove`.

        The objects' classes and other instances stay unchanged, and a deep copy's method is bound
        to the copy. The signature stays the old one's, as transformers chooses arguments by it.

        Raises:
            ValueError: a method is not there, or was already replaced by a handle.
        """
        for owner, name, _ in replacements:
            method = getattr(owner, name, None)
            if not callable(method):
                raise ValueError(
                    f"{type(owner).__name__} has no {name}: transformers >= 5.16 is needed"
                )
            if getattr(method, _OURS, False):
                raise ValueError(
                    f"{type(owner).__name__}: a selector is attached already; remove() its handle "
                    "first"
                )
        for owner, name, run in replacements:
            method, own = getattr(owner, name), vars(owner)
            function = method.__func__ if isinstance(method, MethodType) else _with_self(method)
            if name in own:
                self._undo.callback(setattr, owner, name, own[name])
            else:
                self._undo.callback(delattr, owner, name)
            setattr(owner, name, MethodType(_replacement(function, run), owner))

    def remove(self) -> None:
        """Restores the model and the processor exactly; a second call does nothing."""
        self._undo.close()

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_error: object) -> None:
        self.remove()


def _replacement(function: Method, run: Callable[[Method, Any, dict[str, Any]], Any]) -> Method:
    """The function, both taking the object first, that calls ``run`` in place of ``function``."""
    signature = inspect.signature(function)
    names = list(signature.parameters)[1:]
    required = {
        name
        for name in names
        if signature.parameters[name].default is inspect.Parameter.empty
        and signature.parameters[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    }

    @functools.wraps(function)
    def method(owner: Any, *args: Any, **kwargs: Any) -> Any:
        given = kwargs | dict(zip(names, args, strict=False))
        if len(given) < len(args) + len(kwargs) or not required <= given.keys():
            signature.bind(owner, *args, **kwargs)  # raises TypeError, as the method would
        return run(functools.partial(function, owner), owner, given)

    # Made once, as generate reads it several times a call.
    vars(method).update({"__signature__": signature, _OURS: True})
    return method


def _with_self(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function set on the object itself, changed to take the object first."""

    def call(_owner: Any, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    signature = inspect.signature(function)
    first = inspect.Parameter("_owner", inspect.Parameter.POSITIONAL_ONLY)
    others = list(signature.parameters.values())
    vars(call)["__signature__"] = signature.replace(parameters=[first, *others])
    return call


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
