"""Prepared launches: the launches of a call are recorded once, and later calls replay them.

A function that allocates and launches spends its host time on choosing tiles and on Triton's checks
of every argument. The results depend only on shapes, strides, dtypes, alignment and device of its
tensors and on its numbers, which are the cache key. No memory is cached: every call allocates its
own on the current stream, so that threads, streams and CUDA graphs share nothing.
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

MAX_RECIPES = 128  # of a function
TENSORS = frozenset((Tensor, torch.nn.Parameter))  # no other subclass
SCALARS = frozenset((int, bool, str, type(None)))
P = ParamSpec("P")
R = TypeVar("R")
_launched_by_triton = JITFunction.run
_shape, _dtype, _device = attrgetter("shape"), attrgetter("dtype"), attrgetter("device")


class _Entry:
    """The recipe of a kind of call, or why there is none."""

    __slots__ = ("recipe",)

    def __init__(self, _: Any) -> None:
        self.recipe: Recipe | str | None = None


class _Call(NamedTuple):
    """A call: its cache key, and what varies between calls of one key."""

    key: tuple[Any, ...]
    tensors: list[Tensor]
    addresses: list[int]
    current: int  # device


class Prepared(Generic[P, R]):
    """A function decorated by `prepared`."""

    def __init__(self, function: Callable[P, R]) -> None:
        update_wrapper(self, function)
        self._function = function
        # Two threads may create an entry for one key at once; both get the same recipe.
        self._entries = lru_cache(MAX_RECIPES)(_Entry)

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
        """The recipe of such a call, or why there is none; None before the first call."""
        call = _call_of(args, kwargs)
        return None if call is None else self._entries(call.key).recipe

    def kinds(self) -> int:
        """How many kinds of calls are cached, at most `MAX_RECIPES`."""
        return self._entries.cache_info().currsize

    def forget(self) -> None:
        """Empties the cache."""
        self._entries.cache_clear()


def prepared(function: Callable[P, R]) -> Prepared[P, R]:
    """Decorates a function whose launches depend only on the cache key of its arguments.

    The function takes tensors, lists and tuples of them, and numbers; it returns a tensor or a
    tuple of them; it launches by `ocvtp_kernels.triton_common.launch.launch` alone. The first call
    of a kind runs the function itself. If that call runs an op that neither allocates nor makes a
    view, all calls of its kind run the function itself.
    """
    return Prepared(function)


def _intercepted() -> bool:
    """Whether calls are traced, observed, interpreted, or run by something else."""
    return (
        torch.compiler.is_compiling()
        or observed()
        or bool(torch._C._len_torch_dispatch_stack())
        # Profilers replace it.
        or JITFunction.run is not _launched_by_triton
        or interpreting()
    )


def _call_of(args: Sequence[Any], kwargs: dict[str, Any]) -> _Call | None:
    """None for a call that is never prepared."""
    if _intercepted():
        return None
    tensors: list[Tensor] = []
    plain: list[Any] = [*kwargs]
    for value in (*args, *kwargs.values()) if kwargs else args:
        kind = type(value)
        if kind in TENSORS:
            tensors.append(value)
            plain.append(Tensor)
        elif kind in SCALARS:
            # True equals 1, but Triton compiles for each.
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
    except (RuntimeError, NotImplementedError):  # tensors without memory, or no GPU
        return None
    key = (
        tuple(plain),
        tuple(map(_shape, tensors)),
        strides,
        tuple(map(_dtype, tensors)),
        tuple([address % SPECIALIZED for address in addresses]),
        # With two inputs at one address it is ambiguous which of them a launch was given.
        None if len(set(addresses)) == len(addresses) else tuple(map(addresses.index, addresses)),
        device,
        current,
        arch_of(device),
        dot_precision(torch.float32),
    )
    return _Call(key, tensors, addresses, current)
