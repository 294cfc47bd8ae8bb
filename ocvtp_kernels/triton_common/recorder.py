"""Records a call, and makes a recipe of it if it only allocates and launches."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from ocvtp_kernels.triton_common.launch import Launch
from ocvtp_kernels.triton_common.recipe import Output, Pointers, Recipe, Step, Storage, picker

ALIGNMENT = 256  # bytes, that of torch's allocations
SPECIALIZED = 16  # bytes; Triton compiles for pointers that are a multiple
aten = torch.ops.aten
EMPTIES = (
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
)
CONSTANTS = (bool, int, float, str, type(None), tl.constexpr, tl.dtype, JITFunction)


class NotPreparable(Exception):
    """A call that no recipe can replay; the message says why."""


class Recorder(TorchDispatchMode):
    """Records allocations and other ops while it is active, and launches by `launched`."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[Tensor] = []  # kept alive, so that no two have the same memory
        self._others: list[str] = []
        self._launches: list[tuple[Launch, Any]] = []

    def __torch_dispatch__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in EMPTIES:
            self._made.append(result)
        elif not func.is_view:
            self._others.append(str(func))
        return result

    def launched(self, launch: Launch, compiled: Any) -> None:
        """Records a launch."""
        self._launches.append((launch, compiled))

    def recipe(self, inputs: Sequence[Tensor], result: Any) -> Recipe:
        """The recipe of the recorded call, which returned ``result``.

        Raises:
            NotPreparable: it did more than a recipe can do.
        """
        if self._others:
            raise NotPreparable(f"it runs {', '.join(dict.fromkeys(self._others))}")
        device = inputs[0].device
        if any(made.device != device for made in self._made):
            raise NotPreparable(f"it takes memory elsewhere than on {device}")
        single = not isinstance(result, (tuple, list))
        layout = _Layout(inputs, self._made, [result] if single else result)
        book = _Book(layout)
        steps = [book.step(launch, compiled) for launch, compiled in self._launches]
        pick = [picker(book.places(step)) for step in steps]
        return Recipe(
            device,
            layout.storages,
            layout.outputs,
            single,
            book.constants,
            Pointers(*zip(*book.pointers, strict=True)) if book.pointers else Pointers((), ()),
            [
                Step(compiled, _on_three_axes(launch.grid), each)
                for (launch, compiled), each in zip(self._launches, pick, strict=True)
            ],
        )


def _on_three_axes(grid: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = (*grid, 1, 1)[:3]
    return x, y, z


class _Region(NamedTuple):
    """A region of memory of the recorded call."""

    start: int
    end: int
    root: int
    offset: int  # of its start in the root


class _Layout:
    """Where the memory of a recorded call is in a replay."""

    def __init__(
        self, inputs: Sequence[Tensor], made: Sequence[Tensor], outputs: Sequence[Any]
    ) -> None:
        self.storages: list[Storage] = []
        self.outputs: list[Output | None] = []
        self._inputs = [(each.data_ptr(), _end(each), root) for root, each in enumerate(inputs)]
        memory = {_identity(each): each.untyped_storage() for each in made}
        first = len(inputs)
        roots: dict[int, tuple[int, int]] = {}  # of storages, and the offset there
        for identity, those in _by_storage(outputs, memory).items():
            roots[identity] = first + len(self.storages), 0
            self.storages.append(_kept(those, memory[identity].nbytes()))
        for output in outputs:
            self.outputs.append(None if output is None else self._output(output, roots, first))
        total = 0
        for identity, storage in memory.items():
            if identity not in roots:
                roots[identity] = first + len(self.storages), total
                total += -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
        if total:
            self.storages.append(Storage((total,), (1,), torch.uint8))
        self._made = sorted(
            _Region(storage.data_ptr(), storage.data_ptr() + storage.nbytes(), *roots[identity])
            for identity, storage in memory.items()
            if storage.nbytes()
        )
        self._starts = [region.start for region in self._made]

    def _output(self, output: Tensor, roots: dict[int, tuple[int, int]], first: int) -> Output:
        place = roots[_identity(output)][0] - first
        layout = Storage(tuple(output.shape), output.stride(), output.dtype)
        offset = int(output.storage_offset())
        if layout == self.storages[place] and not offset:
            return Output(place)
        return Output(place, layout, offset)

    def find(self, tensor: Tensor) -> tuple[int, int]:
        """The root and offset of a tensor that a launch was given."""
        address = tensor.data_ptr()
        index = bisect_right(self._starts, address) - 1
        if index >= 0 and address < self._made[index].end:
            start, _, root, offset = self._made[index]
            if start % SPECIALIZED:
                raise NotPreparable("its memory is not aligned")
            return root, offset + address - start
        found = {
            start: root for start, end, root in reversed(self._inputs) if start <= address < end
        }
        if len(found) != 1:
            whose = "no input" if not found else "inputs that overlap"
            raise NotPreparable(f"it launches on memory of {whose}")
        ((start, root),) = found.items()
        return root, address - start


def _identity(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _end(tensor: Tensor) -> int:
    """The address after the last byte."""
    if not tensor.numel():
        return 0
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr() + (last + 1) * tensor.element_size()


def _by_storage(outputs: Sequence[Any], memory: dict[int, Any]) -> dict[int, list[Tensor]]:
    found: dict[int, list[Tensor]] = {}
    for output in outputs:
        if output is None:
            continue
        if not isinstance(output, Tensor):
            raise NotPreparable(f"it returns a {type(output).__name__}")
        if _identity(output) not in memory:
            raise NotPreparable("it returns memory that it has not taken")
        found.setdefault(_identity(output), []).append(output)
    return found


def _kept(outputs: Sequence[Tensor], size: int) -> Storage:
    """The storage that these outputs share; a single one that fills it gives its layout."""
    one = outputs[0]
    if len(outputs) == 1 and not one.storage_offset() and _end(one) - one.data_ptr() == size:
        return Storage(tuple(one.shape), one.stride(), one.dtype)
    return Storage((size,), (1,), torch.uint8)


class _Book:
    """The values that launches are given, without repeats."""

    def __init__(self, layout: _Layout) -> None:
        self._layout = layout
        self._places: dict[int, int] = {}  # of constants, by identity
        self.constants: list[Any] = []
        self.pointers: dict[tuple[int, int], int] = {}

    def step(self, launch: Launch, compiled: Any) -> list[tuple[bool, int]]:
        """The arguments of a launch: whether it is a pointer, and which."""
        kernel = launch.kernel
        if not isinstance(kernel, JITFunction) or not isinstance(compiled, CompiledKernel):
            raise NotPreparable("a launch was not Triton's to compile")
        if kernel.pre_run_hooks or kernel.launch_metadata is not None:
            raise NotPreparable("a kernel wants to see its arguments")
        return [
            self._argument(
                launch.arguments[name]
                if name in launch.arguments
                else kernel.signature.parameters[name].default
            )
            for name in kernel.arg_names
        ]

    def _argument(self, value: Any) -> tuple[bool, int]:
        if isinstance(value, Tensor):
            if not value.data_ptr():
                return self._argument(0)
            place = self._layout.find(value)
            return True, self.pointers.setdefault(place, len(self.pointers))
        if not isinstance(value, CONSTANTS):
            raise NotPreparable(f"a launch is given a {type(value).__name__}")
        # By identity: True equals 1, but Triton compiles for each.
        number = self._places.setdefault(id(value), len(self.constants))
        if number == len(self.constants):
            self.constants.append(value)
        return False, number

    def places(self, step: Sequence[tuple[bool, int]]) -> list[int]:
        """Where the arguments are among all values, pointers after constants."""
        return [len(self.constants) + place if moves else place for moves, place in step]
