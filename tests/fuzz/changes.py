"""What is done to valid arguments: other memory, awkward values, and what may not fit.

Each table holds a kind a line. `Table` functions take the choices of a case and a value.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.fuzz.draw import DTYPES, Draw, has_memory, map_tensors

Change = Callable[[Draw, Any], Any]


def restrided(tensor: Tensor, view: Tensor) -> Tensor:
    """The values in memory that is laid out as ``view``, which has as many elements."""
    with torch.no_grad():
        return view.copy_(tensor)


def permuted(draw: Draw, tensor: Tensor) -> Tensor:
    """Dimensions in another order in memory: transposed, channels last."""
    order = draw.sample(range(tensor.dim()), tensor.dim())
    shape = [tensor.shape[dim] for dim in order]
    back = [order.index(dim) for dim in range(tensor.dim())]
    return restrided(tensor, tensor.new_empty(shape).permute(back))


def stepped(draw: Draw, tensor: Tensor) -> Tensor:
    """Every second or third element of a larger one, from an offset."""
    step = draw.randint(2, 3)
    wide = tensor.new_zeros([step * size + 1 for size in tensor.shape])
    return restrided(tensor, wide[(slice(1, None, step),) * tensor.dim()])


def offset(draw: Draw, tensor: Tensor) -> Tensor:
    """A slice that begins within its storage, at an address that is not aligned."""
    before = draw.randint(1, 9)
    memory = tensor.new_zeros(tensor.numel() + before)
    return restrided(tensor, memory[before:].view(tensor.shape))


def expanded(draw: Draw, tensor: Tensor) -> Tensor:
    """Stride 0 along a dimension."""
    if tensor.dim() == 0:
        return tensor
    dim = draw.randrange(tensor.dim())
    return tensor if tensor.shape[dim] == 0 else tensor.narrow(dim, 0, 1).expand(tensor.shape)


def inference(draw: Draw, tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.clone()


def differentiable(draw: Draw, tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor


def parameter(draw: Draw, tensor: Tensor) -> Tensor:
    return nn.Parameter(tensor) if tensor.is_floating_point() else tensor


def negated_lazily(draw: Draw, tensor: Tensor) -> Tensor:
    """With the bit that says that its values are negated."""
    # The sign of NaN depends on where in memory torch negates it.
    has_sign = tensor.dtype in DTYPES and not bool(tensor.isnan().any())
    return torch._neg_view(-tensor) if has_sign else tensor


# The same values, but for `expanded`: all of these are taken.
MEMORY: dict[Change, int] = {
    permuted: 3,
    stepped: 3,
    offset: 2,
    expanded: 2,
    inference: 2,
    differentiable: 4,
    parameter: 1,
    negated_lazily: 1,
}


def scattered(number: float) -> Change:
    def change(draw: Draw, tensor: Tensor) -> Tensor:
        share = draw.choice((0.02, 0.3, 1.0))
        return tensor.masked_fill(draw.mask(tensor.shape, share), number)

    return change


def scaled(exponents: tuple[float, float]) -> Change:
    """Times a power of 2 between two shares of the dtype's exponents."""

    def change(draw: Draw, tensor: Tensor) -> Tensor:
        most = math.log2(torch.finfo(tensor.dtype).max)
        factor = 2.0 ** (most * draw.uniform(*exponents))
        return (tensor.double() * factor).to(tensor.dtype)

    return change


def alike(draw: Draw, tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, draw.choice((0.0, -0.0, 1.0, -3.0)))


def whole(draw: Draw, tensor: Tensor) -> Tensor:
    """Few distinct numbers, so that many tie."""
    return tensor.round()


def outlying(draw: Draw, tensor: Tensor) -> Tensor:
    """Some channels are 80 times the rest."""
    large = torch.arange(tensor.shape[-1] if tensor.dim() else 1) % 5 == 0
    return torch.where(large, 80 * tensor, tensor).view(tensor.shape)


VALUES: dict[Change, int] = {
    scattered(math.nan): 3,
    scattered(math.inf): 2,
    scattered(-math.inf): 2,
    scattered(0.0): 1,
    scaled((0.7, 1.0)): 2,
    scaled((-1.1, -0.9)): 2,
    scaled((0.1, 0.4)): 1,
    alike: 2,
    whole: 2,
    outlying: 2,
}


def resized(size: Callable[[Draw, int], int]) -> Change:
    def change(draw: Draw, tensor: Tensor) -> Tensor:
        if tensor.dim() == 0:
            return tensor
        shape = list(tensor.shape)
        dim = draw.randrange(len(shape))
        shape[dim] = max(0, size(draw, shape[dim]))
        return draw.any_of(*shape, dtype=tensor.dtype)

    return change


def without_rank(draw: Draw, tensor: Tensor) -> Tensor:
    if tensor.dim() == 0 or 0 in tensor.shape:
        return tensor.new_zeros(())
    return tensor.select(draw.randrange(tensor.dim()), 0)


def another_dtype(draw: Draw, tensor: Tensor) -> Tensor:
    names = (
        *("float16", "bfloat16", "float32", "float64", "int64", "int32", "int8", "uint8"),
        *("uint16", "bool", "complex64", "complex128", "complex32"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e8m0fnu"),
    )
    dtype = getattr(torch, draw.choice(names))
    return tensor.detach().double().to(dtype) if not tensor.is_complex() else tensor.to(dtype)


def another_layout(draw: Draw, tensor: Tensor) -> Any:
    """Sparse, oneDNN's, quantised or nested, where there is such a tensor."""
    dense = tensor.detach().float()
    layouts: list[Callable[[], Any]] = [
        dense.to_sparse,
        dense.to_sparse_csr,
        lambda: dense.contiguous().to_mkldnn(),
        lambda: torch.quantize_per_tensor(dense, 0.1, 0, torch.quint8),
        lambda: torch.nested.nested_tensor(list(dense)),
        lambda: torch.nested.nested_tensor(list(dense), layout=torch.jagged),
    ]
    try:
        return draw.choice(layouts)()
    except (RuntimeError, ValueError, IndexError):
        return tensor


def on_meta(draw: Draw, tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def as_numpy(draw: Draw, tensor: Tensor) -> Any:
    return tensor.detach().double().numpy()


def as_list(draw: Draw, tensor: Tensor) -> Any:
    return [tensor]


OBJECT = object()  # only one, so that a case reads the same again


def something(draw: Draw, value: Any) -> Any:
    """No tensor, list or number that fits."""
    return draw.choice((None, "x", "", 3, 2.5, True, [], {}, OBJECT, 1j, (1, 2), np.zeros(2)))


def no_bool(draw: Draw, value: Any) -> Any:
    """Nothing that fits where True or False does."""
    found = something(draw, value)
    return "x" if found is True else found


# What may not fit an argument.
SPOILT_TENSOR: dict[Change, int] = {
    resized(lambda draw, size: 0): 2,
    resized(lambda draw, size: 1): 2,
    resized(lambda draw, size: size + 1): 3,
    resized(lambda draw, size: size - 1): 3,
    resized(lambda draw, size: draw.size()): 2,
    without_rank: 2,
    lambda draw, tensor: tensor.unsqueeze(draw.randint(0, tensor.dim())): 2,
    another_dtype: 5,
    another_layout: 4,
    on_meta: 3,
    as_numpy: 1,
    as_list: 1,
    something: 3,
}
HUGE = (2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, 2**63, 2**70, -1, -(2**31), -(2**63), -(2**70))
SPOILT_INT: dict[Change, int] = {
    lambda draw, number: draw.choice(HUGE): 4,
    lambda draw, number: draw.choice((0, 1, number + 1, number - 1, -number)): 3,
    lambda draw, number: draw.choice((np.int64, np.int32))(number % 2**31): 3,
    lambda draw, number: draw.choice((float, str, bool, np.bool_, np.float64))(number): 3,
    lambda draw, number: torch.tensor(number): 1,
    something: 2,
}
SPOILT_FLOAT: dict[Change, int] = {
    lambda draw, number: draw.choice((math.nan, math.inf, -math.inf, 1e300, -1.0, 5e-324)): 4,
    lambda draw, number: draw.choice((0, 1, -2, 2**70, np.float32(0.3), np.float64(0.3))): 3,
    lambda draw, number: draw.choice((str, bool, complex, torch.tensor))(number): 2,
    something: 2,
}
SPOILT_WORD: dict[Change, int] = {
    lambda draw, word: draw.choice((word.upper(), f"{word} ", "", "zeros")): 2,
    something: 1,
}


def spoilt_list(draw: Draw, values: Any) -> Any:
    """Weights: one of another kind, shape, dtype or device; one more or fewer; in another order."""
    values = list(values)
    place = draw.randrange(len(values)) if values else 0
    dtype = draw.dtype()
    ways: list[Callable[[], Any]] = [
        lambda: [*values[:place], spoilt(draw, values[place]), *values[place + 1 :]],
        lambda: values[:place] + values[place + 1 :],
        lambda: [*values, values[-1]],
        lambda: [],
        lambda: values[::-1],
        lambda: tuple(values),
        lambda: [values],
        lambda: draw.sample(values, len(values)),
        lambda: [spoilt(draw, value) if draw.chance(0.1) else value for value in values],
        lambda: map_tensors(lambda one: one.to("meta"), values),
        lambda: map_tensors(lambda one: one.to(dtype), values),
        lambda: something(draw, values),
    ]
    return draw.choice(ways)() if values else something(draw, values)


def spoilt(draw: Draw, value: Any) -> Any:
    """Another argument, which mostly does not fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(value, Tensor):
            # What was spoilt before may be a tensor of which there are few functions.
            is_plain = has_memory(value) or value.device.type == "meta"
            try:
                change = draw.weighted(SPOILT_TENSOR) if is_plain else something
                return change(draw, value)
            except (RuntimeError, TypeError):  # of a tensor that torch has not
                return something(draw, value)
        if isinstance(value, (list, tuple)):
            return spoilt_list(draw, value)
        tables = {bool: {no_bool: 1}, int: SPOILT_INT, float: SPOILT_FLOAT, str: SPOILT_WORD}
        table = tables.get(type(value), {something: 1})
        try:
            return draw.weighted(table)(draw, value)
        except (OverflowError, ValueError):  # of a number that no tensor holds
            return something(draw, value)


def in_other_memory(draw: Draw, tensor: Tensor) -> Tensor:
    return draw.weighted(MEMORY)(draw, tensor)


def of_other_values(draw: Draw, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() or tensor.itemsize < 2:
        return tensor
    return draw.weighted(VALUES)(draw, tensor)
