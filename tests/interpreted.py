"""Triton's interpreter as the tests run it: quicker, and every access to memory checked.

A load, store or atomic that is not masked has to lie within a tensor of its launch, aligned to its
elements: a GPU may read on past a tensor without a fault, and neither does the CPU fault at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import numpy as np
from torch import Tensor
from triton.language import core
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, interpreter_builder

from ocvtp_kernels.triton_common.launch import Launch

Span = tuple[int, int]  # first address, and that past the last


def spans_of(launch: Launch) -> list[Span]:
    """Where the tensors of a launch lie."""
    spans = []
    for tensor in launch.arguments.values():
        if isinstance(tensor, Tensor) and tensor.numel():
            steps = zip(tensor.shape, tensor.stride(), strict=True)
            last = sum((length - 1) * stride for length, stride in steps)
            start = tensor.data_ptr()
            spans.append((start, start + (last + 1) * tensor.element_size()))
    return spans


def within(spans: list[Span], addresses: np.ndarray, size: int) -> bool:
    """Whether elements of so many bytes all lie in one of the spans, and are aligned."""
    if not addresses.size:
        return True
    low, high = int(addresses.min()), int(addresses.max()) + size
    aligned = size == 1 or not int(np.bitwise_or.reduce(addresses, axis=None)) & (size - 1)
    return aligned and any(start <= low and high <= end for start, end in spans)


def checked(launch: Launch) -> dict[str, Callable[..., Any]]:
    """Stand-ins for what the interpreter accesses memory by.

    Loads and stores without a mask go through the masked ones.
    """
    spans = spans_of(launch)

    def check(pointers: Any, mask: Any) -> None:
        lanes, size = pointers.data, max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        # Most masked lanes lie within too, so that the mask need not be looked at.
        if within(spans, lanes, size):
            return
        if mask is not None:
            lanes = lanes[np.broadcast_to(mask.data, lanes.shape)]
        if not within(spans, lanes, size):
            places = ", ".join(f"{start:#x} to {end:#x}" for start, end in spans)
            raise IndexError(
                f"elements of {size} bytes at {lanes.min():#x} to {lanes.max():#x} are not "
                f"aligned, or not within one of the launch's tensors, {places}"
            )

    def stand_in(name: str, pointers_at: int, mask_at: int | None) -> Callable[..., Any]:
        plain = getattr(InterpreterBuilder, name)

        def access(*arguments: Any) -> Any:
            check(arguments[pointers_at], None if mask_at is None else arguments[mask_at])
            return plain(interpreter_builder, *arguments)

        return access

    return {
        "create_masked_load": stand_in("create_masked_load", 0, 1),
        "create_masked_store": stand_in("create_masked_store", 0, 2),
        "create_atomic_rmw": stand_in("create_atomic_rmw", 1, 3),
        "create_atomic_cas": stand_in("create_atomic_cas", 0, None),
    }


def sum_alike(a: Any, b: Any, d: Any, *options: Any) -> Any:
    """A dot that is the same on every CPU: the order in which a BLAS sums is that of its kernels.

    Products are summed in float64 and rounded once, to the accumulator's dtype.
    """
    if a.data.dtype.kind != "f" or b.data.dtype.kind != "f":
        return InterpreterBuilder.create_dot(interpreter_builder, a, b, d, *options)
    exact = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64)) + d.data
    return interpreter.TensorHandle(exact.astype(d.data.dtype), d.dtype.scalar)


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
    """Runs a launch in the interpreter, without what it does over and over again.

    Raises:
        IndexError: an access is outside of every tensor of the launch, or not aligned.
    """
    stand_ins = [
        (interpreter, "_patch_lang", patch_once()),
        (interpreter.interpreter_semantic, "broadcast_impl_value", broadcast_alike),
        (interpreter, "_get_np_dtype", type_of_elements()),
        (core.tensor, "__init__", shapes_once()),
        (core.block_type, "__init__", block_types_once()),
        (interpreter_builder, "create_dot", sum_alike),
        *((interpreter_builder, name, access) for name, access in checked(launch).items()),
    ]
    with ExitStack() as stack:
        for stand_in in stand_ins:
            stack.enter_context(patch.object(*stand_in))
        launch.kernel[launch.grid](**launch.arguments, **launch.options)
