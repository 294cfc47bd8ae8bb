"""Prepared launches: what a call launches is found once, and then only filled in.

A function that takes memory and launches, as ours do, spends its time on the host finding tiles and
having Triton look at every argument. All of that follows from shapes, strides, dtypes, alignment
and device of its tensors and from its numbers, so it is kept by them. No memory is: every call
takes its own on the current stream, so that threads, streams and CUDA graphs share nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, update_wrapper
from operator import attrgetter
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

from ocvtp_kernels.triton_common.archs import arch_of
from ocvtp_kernels.triton_common.launch import dot_precision, interpreting, observed, record
from ocvtp_kernels.triton_common.recipe import Recipe
from ocvtp_kernels.triton_common.recorder import SPECIALIZED, NotPreparable, Recorder

MOST = 128  # recipes a function
TENSORS = frozenset((Tensor, torch.nn.Parameter))  # no subclass, which may be anything
NUMBERS = frozenset((int, bool, str, type(None)))
P = ParamSpec("P")
R = TypeVar("R")
_launched_by_triton = JITFunction.run
_shape, _dtype, _device = attrgetter("shape"), attrgetter("dtype"), attrgetter("device")


class _Entry:
    """What is known of a kind of call: its recipe, or why there is none."""

    __slots__ = ("recipe",)

    def __init__(self, _: Any) -> None:
        self.recipe: Recipe | str | None = None


class _Call(NamedTuple):
    """A call by what its launches depend on."""

    key: tuple[Any, ...]
    tensors: list[Tensor]
    addresses: list[int]
    current: int  # device


class Prepared(Generic[P, R]):
    """A function decorated by `prepared`."""

    def __init__(self, function: Callable[P, R]) -> None:
        update_wrapper(self, function)
        self._function = function
        # Threads may find different entries for one key at once; both come to hold the same.
        self._entries = lru_cache(MOST)(_Entry)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        call = _call_of(args, kwargs)
        if call is None:
            return self._function(*args, **kwargs)
        entry = self._entries(call.key)
        recipe = entry.recipe
        if isinstance(recipe, Recipe):
            result: R = recipe(call.addresses, call.current)
            return result
        if recipe is not None:
            return self._function(*args, **kwargs)
        recorder = Recorder()
        with recorder, record(recorder.launched):
            result = self._function(*args, **kwargs)
        try:
            entry.recipe = recorder.recipe(call.tensors, result)
        except NotPreparable as reason:
            entry.recipe = str(reason)
        return result

    def kept(self, *args: P.args, **kwargs: P.kwargs) -> Recipe | str | None:
        """The recipe of such a call, or why there is none, or None if nothing is known yet."""
        call = _call_of(args, kwargs)
        return None if call is None else self._entries(call.key).recipe

    def kinds(self) -> int:
        """How many kinds of calls are remembered, at most `MOST`."""
        return self._entries.cache_info().currsize

    def forget(self) -> None:
        """The next call of every kind is a first one."""
        self._entries.cache_clear()


def prepared(function: Callable[P, R]) -> Prepared[P, R]:
    """Decorates a function whose launches follow from the kind of its arguments.

    The function takes tensors, lists and tuples of them, and numbers; it returns a tensor or a
    tuple of them. Whatever it launches, it launches by `ocvtp_kernels.triton_common.launch.launch`. The first
    call of a kind runs it as it is; if that runs any op but those that take memory and make views,
    so do all others.
    """
    return Prepared(function)


def _unlike_itself() -> bool:
    """Whether somebody looks at what runs, or runs something else instead."""
    return (
        torch.compiler.is_compiling()
        or observed()
        or bool(torch._C._len_torch_dispatch_stack())
        # Profilers put their own in its place.
        or JITFunction.run is not _launched_by_triton
        or interpreting()
    )


def _call_of(args: Sequence[Any], kwargs: dict[str, Any]) -> _Call | None:
    """None for a call that is never prepared."""
    if _unlike_itself():
        return None
    tensors: list[Tensor] = []
    plain: list[Any] = [*kwargs]
    for value in (*args, *kwargs.values()) if kwargs else args:
        kind = type(value)
        if kind in TENSORS:
            tensors.append(value)
            plain.append(Tensor)
        elif kind in NUMBERS:
            # True is 1, but not to Triton.
            plain += (kind, value)
        elif kind is float:
            plain += (kind, value.hex())
        elif kind in (list, tuple) and TENSORS.issuperset(map(type, value)):
            tensors += value
            plain += (kind, len(value))
        else:
            return None
    devices = set(map(_device, tensors))
    if len(devices) != 1:
        return None
    (device,) = devices
    if device.type == "meta":
        return None
    try:
        addresses = list(map(Tensor.data_ptr, tensors))
        strides = tuple(map(Tensor.stride, tensors))
        current = triton.runtime.driver.active.get_current_device()
    except (RuntimeError, NotImplementedError):  # not tensors of memory, or no GPU
        return None
    key = (
        tuple(plain),
        tuple(map(_shape, tensors)),
        strides,
        tuple(map(_dtype, tensors)),
        tuple([address % SPECIALIZED for address in addresses]),
        # Of two inputs in one place nobody could tell which is launched on.
        None if len(set(addresses)) == len(addresses) else tuple(map(addresses.index, addresses)),
        device,
        current,
        arch_of(device),
        dot_precision(torch.float32),
    )
    return _Call(key, tensors, addresses, current)
