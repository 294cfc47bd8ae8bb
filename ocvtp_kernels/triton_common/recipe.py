"""Launches whose arguments are fixed but for the addresses of their memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import add, itemgetter
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor


class Storage(NamedTuple):
    """Memory that a call allocates, as a tensor of this layout."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Output(NamedTuple):
    """A tensor that is returned.

    Attributes:
        storage: the place of its `Storage`.
        layout: None if it is the storage itself.
        offset: in elements.
    """

    storage: int
    layout: Storage | None = None
    offset: int = 0


class Step(NamedTuple):
    """A launch.

    Attributes:
        kernel: as Triton compiled it.
        grid: programs on three axes.
        pick: selects its arguments from a call's values.
    """

    kernel: Any
    grid: tuple[int, int, int]
    pick: Callable[[Sequence[Any]], tuple[Any, ...]]


class Pointers(NamedTuple):
    """Addresses that launches are given.

    Attributes:
        roots: for each the index of its input, or of its storage, counted on from the inputs.
        offsets: for each the bytes into its root.
    """

    roots: tuple[int, ...]
    offsets: tuple[int, ...]


class Recipe:
    """What a call launches; it holds no tensor.

    Args:
        device: where memory is allocated.
        storages: memory of a call, allocated anew each time.
        outputs: what it returns; None stands for None.
        single: the one output is returned itself, not in a tuple.
        constants: the values that are the same in every call.
        pointers: the values that are not; they follow the constants.
        steps: the launches in order.
    """

    def __init__(
        self,
        device: torch.device,
        storages: Sequence[Storage],
        outputs: Sequence[Output | None],
        single: bool,
        constants: Sequence[Any],
        pointers: Pointers,
        steps: Sequence[Step],
    ) -> None:
        self._device = device
        self._storages = tuple(storages)
        self._outputs = tuple(outputs)
        self._single = single
        self._constants = tuple(constants)
        self._roots = picker(pointers.roots)
        self._offsets = pointers.offsets
        # Bound methods and attributes are looked up here, not at every launch.
        self._launches = tuple(
            (
                step.kernel.run,
                *step.grid,
                step.kernel.function,
                step.kernel.packed_metadata,
                step.pick,
            )
            for step in steps
        )
        self._steps = tuple(steps)

    def __call__(self, addresses: Sequence[int], current: int) -> Any:
        """Launches on the current stream.

        Args:
            addresses: of the inputs.
            current: the current device.
        """
        device = self._device
        taken = [
            torch.empty_strided(size, stride, dtype=dtype, device=device)
            for size, stride, dtype in self._storages
        ]
        bases = [*addresses, *[storage.data_ptr() for storage in taken]]
        values = (*self._constants, *map(add, self._roots(bases), self._offsets))
        stream = triton.runtime.driver.active.get_current_stream(current)
        enter, leave = hooks()
        if enter is None and leave is None:
            for run, x, y, z, function, metadata, pick in self._launches:
                run(x, y, z, stream, function, metadata, None, None, None, *pick(values))
        else:
            for (run, x, y, z, function, metadata, pick), step in zip(
                self._launches, self._steps, strict=True
            ):
                arguments = pick(values)
                told = step.kernel.launch_metadata(step.grid, stream, *arguments)
                run(x, y, z, stream, function, metadata, told, enter, leave, *arguments)
        if self._single:
            return _returned(self._outputs[0], taken)
        return tuple(_returned(output, taken) for output in self._outputs)


def _returned(output: Output | None, taken: Sequence[Tensor]) -> Tensor | None:
    if output is None:
        return None
    storage = taken[output.storage]
    if output.layout is None:
        return storage
    size, stride, dtype = output.layout
    whole = storage.numel() // dtype.itemsize * dtype.itemsize
    return storage[:whole].view(dtype).as_strided(size, stride, output.offset)


def hooks() -> tuple[Any, Any]:
    """Triton's hooks around a launch, which profilers set; None for one that does nothing."""
    runtime = triton.knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    if not getattr(enter, "calls", enter) and not getattr(leave, "calls", leave):
        return None, None
    return enter, leave


def picker(places: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """A function that selects the values at these places, as a tuple."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda values: tuple(values[place] for place in places)
