"""Counts what kernels load, store and multiply, launch by launch, in Triton's interpreter.

The interpreter runs every program of a grid on the CPU, on tensors with real addresses. Its loads,
stores, atomics and dots are wrapped, so the counts are exact, free of noise and the same anywhere.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from torch import Tensor
from triton.language import core
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, interpreter_builder

from ocvtp_kernels.triton_common.launch import Launch, interpreting, watch

WIDEST = 8  # bytes of the widest element
# A touched element is written whole, one byte of ones for each of its bytes.
TOUCHED = {size: int.from_bytes(b"\1" * size, "little") for size in (1, 2, 4, 8)}


class Count(NamedTuple):
    """What one launch did.

    Attributes:
        kernel: the kernel's name.
        numbers: its arguments that are no tensors, by name.
        programs: of the grid.
        loaded: bytes that programs asked for; masked lanes do not count. Atomics load and store.
        stored: the same of stores.
        read: distinct bytes loaded: what an endless cache would fetch from memory.
        written: distinct bytes stored.
        flops: 2 M N K of every dot, padding included.
    """

    kernel: str
    numbers: dict[str, Any]
    programs: int
    loaded: int
    stored: int
    read: int
    written: int
    flops: int


class Touched:
    """The bytes of some allocations that were touched."""

    def __init__(self, storages: dict[int, int]) -> None:
        """Takes each allocation's size by its address."""
        # Views of wider elements must fit, at both ends.
        self.starts = [start - start % WIDEST for start in sorted(storages)]
        self.ends = [start + storages[start] for start in sorted(storages)]
        self.marks: dict[int, np.ndarray] = {}

    def touch(self, addresses: np.ndarray, size: int) -> None:
        """Marks elements of ``size`` bytes.

        Raises:
            ValueError: one is outside of every allocation, or its address no multiple of its size.
        """
        low, high = int(addresses.min()), int(addresses.max())
        place = bisect_right(self.starts, low) - 1
        if place < 0 or high + size > self.ends[place]:
            raise ValueError(
                f"an access at {low:#x} to {high + size:#x} is outside of every tensor"
            )
        offsets = addresses - np.uint64(self.starts[place])
        if int(np.bitwise_or.reduce(offsets)) % size:
            raise ValueError(f"an access of {size} bytes is not aligned to them")
        if place not in self.marks:
            length = self.ends[place] - self.starts[place]
            self.marks[place] = np.zeros(-(-length // WIDEST) * WIDEST, np.uint8)
        elements = self.marks[place].view(f"u{size}")
        elements[offsets // np.uint64(size)] = TOUCHED[size]

    def total(self) -> int:
        """Distinct bytes."""
        return sum(int(np.count_nonzero(mark)) for mark in self.marks.values())


class Counter:
    """The counts of one launch, while it runs."""

    def __init__(self, launch: Launch) -> None:
        tensors = [value for value in launch.arguments.values() if isinstance(value, Tensor)]
        memories = [tensor.untyped_storage() for tensor in tensors]
        storages = {memory.data_ptr(): memory.nbytes() for memory in memories if memory.nbytes()}
        self.launch = launch
        self.loaded = self.stored = self.flops = 0
        self.read, self.written = Touched(storages), Touched(storages)

    def access(self, pointers: Any, mask: Any, loads: bool, stores: bool) -> None:
        """One load, store or atomic; ``mask`` None takes all lanes."""
        addresses = pointers.data.reshape(-1)
        if mask is not None:
            addresses = addresses[np.broadcast_to(mask.data, pointers.data.shape).reshape(-1)]
        if not addresses.size:
            return
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        if loads:
            self.loaded += addresses.size * size
            self.read.touch(addresses, size)
        if stores:
            self.stored += addresses.size * size
            self.written.touch(addresses, size)

    def count(self) -> Count:
        """The counts once it has run."""
        launch = self.launch
        return Count(
            launch.kernel.__name__,
            {k: v for k, v in launch.arguments.items() if not isinstance(v, Tensor)},
            prod(launch.grid),
            self.loaded,
            self.stored,
            self.read.total(),
            self.written.total(),
            self.flops,
        )


def wrappers(counter: Counter, multiply: bool) -> dict[str, Callable[..., Any]]:
    """Stand-ins for the interpreter's builders of memory accesses and dots.

    Loads and stores without a mask go through the masked ones, which are wrapped alone.
    """
    plain = InterpreterBuilder

    def load(pointers: Any, mask: Any, *rest: Any) -> Any:
        counter.access(pointers, mask, loads=True, stores=False)
        return plain.create_masked_load(interpreter_builder, pointers, mask, *rest)

    def store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        counter.access(pointers, mask, loads=False, stores=True)
        return plain.create_masked_store(interpreter_builder, pointers, value, mask, *rest)

    def atomic(operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        counter.access(pointers, mask, loads=True, stores=True)
        return plain.create_atomic_rmw(interpreter_builder, operation, pointers, value, mask, *rest)

    def swap(pointers: Any, *rest: Any) -> Any:
        counter.access(pointers, None, loads=True, stores=True)
        return plain.create_atomic_cas(interpreter_builder, pointers, *rest)

    def dot(a: Any, b: Any, total: Any, *rest: Any) -> Any:
        counter.flops += 2 * a.data.size * b.data.shape[-1]
        # Without multiplying, the product is zero and the sum stays as it was.
        return plain.create_dot(interpreter_builder, a, b, total, *rest) if multiply else total

    return {
        "create_masked_load": load,
        "create_masked_store": store,
        "create_atomic_rmw": atomic,
        "create_atomic_cas": swap,
        "create_dot": dot,
    }


def patch_once() -> Callable[[Any], Any]:
    """`interpreter._patch_lang` for one launch: a function's language is patched once.

    The interpreter patches at every call of a device function, which takes half its time.
    """
    plain, nothing = interpreter._patch_lang, interpreter._LangPatchScope()
    patched: set[Any] = set()

    def patch_language(function: Any) -> Any:
        if function in patched:
            return nothing
        patched.add(function)
        return plain(function)

    return patch_language


def broadcast_alike(lhs: Any, rhs: Any) -> Any:
    """The interpreter's broadcasting, done at once where shapes are the same already."""
    blocks = lhs.type.is_block() and rhs.type.is_block()
    if blocks and lhs.handle.data.shape == rhs.handle.data.shape:
        return lhs, rhs
    semantic = interpreter.interpreter_semantic
    return type(semantic).broadcast_impl_value(semantic, lhs, rhs)


def type_of_elements() -> Callable[[Any], Any]:
    """`interpreter._get_np_dtype` for one launch, which makes its table at every call."""
    plain = interpreter._get_np_dtype
    known: dict[str, Any] = {}

    def numpy_type(kind: Any) -> Any:
        name = kind.scalar.name
        if name not in known:
            known[name] = plain(kind)
        return known[name]

    return numpy_type


def shapes_once() -> Callable[..., None]:
    """`tl.tensor.__init__` for one launch: tensors of a shape share its constants."""
    plain = core.tensor.__init__
    known: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def initialize(tensor: Any, handle: Any, kind: Any) -> None:
        shape = tuple(kind.shape) if kind.is_block() else ()
        if shape not in known:
            plain(tensor, handle, kind)
            known[shape] = tensor.numel, tensor.shape
        tensor.handle, tensor.type, tensor.dtype = handle, kind, kind.scalar
        tensor.numel, tensor.shape = known[shape]

    return initialize


def block_types_once() -> Callable[..., None]:
    """`tl.block_type.__init__` for one launch: a shape is checked and named once."""
    plain = core.block_type.__init__
    known: dict[tuple[str, tuple[int, ...]], tuple[Any, int, str]] = {}

    def initialize(kind: Any, element: Any, shape: Any) -> None:
        sizes = tuple(size if type(size) is int else size.value for size in shape)
        key = element.name, sizes
        if key not in known:
            plain(kind, element, shape)
            known[key] = kind.shape, kind.numel, kind.name
        kind.element_ty = element
        kind.shape, kind.numel, kind.name = known[key]

    return initialize


def run_quickly(launch: Launch) -> None:
    """Runs a launch in the interpreter, without what it does over and over again."""
    semantic = interpreter.interpreter_semantic
    with (
        patch.object(interpreter, "_patch_lang", patch_once()),
        patch.object(semantic, "broadcast_impl_value", broadcast_alike),
        patch.object(interpreter, "_get_np_dtype", type_of_elements()),
        patch.object(core.tensor, "__init__", shapes_once()),
        patch.object(core.block_type, "__init__", block_types_once()),
    ):
        launch.kernel[launch.grid](**launch.arguments, **launch.options)


def signature(launch: Launch) -> tuple[Any, ...]:
    """What a launch's counts follow from, wherever no address and no mask depends on a value."""
    tensors = {name: v for name, v in launch.arguments.items() if isinstance(v, Tensor)}
    memories = {name: tensor.untyped_storage().data_ptr() for name, tensor in tensors.items()}
    return (
        launch.kernel,
        launch.grid,
        *((name, v) for name, v in launch.arguments.items() if name not in tensors),
        *(
            (name, v.dtype, v.shape, v.stride(), v.storage_offset(), memories[name])
            for name, v in tensors.items()
        ),
    )


@contextmanager
def counting(multiply: bool = True) -> Iterator[list[Count]]:
    """Within the block every launch is run and counted, in order, into the list it gives.

    Args:
        multiply: do the dots, and all launches. Without, a launch with the very arguments of an
            earlier one is not run again, and outputs are wrong; counts are the same wherever no
            address and no mask depends on a value.

    Raises:
        RuntimeError: Triton was imported without ``TRITON_INTERPRET=1``.
    """
    if not interpreting():
        raise RuntimeError("counting: expected TRITON_INTERPRET=1, set before Triton is imported")
    counts: list[Count] = []
    known: dict[tuple[Any, ...], Count] = {}

    def run(launch: Launch) -> None:
        key = signature(launch)
        if not multiply and key in known:
            counts.append(known[key])
            return
        counter = Counter(launch)
        with ExitStack() as stack:
            for name, wrapper in wrappers(counter, multiply).items():
                stack.enter_context(patch.object(interpreter_builder, name, wrapper))
            run_quickly(launch)
        known[key] = counter.count()
        counts.append(known[key])

    with watch(run):
        yield counts
