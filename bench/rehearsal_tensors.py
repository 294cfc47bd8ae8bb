"""The tensors of `bench.rehearsal`: CPU tensors marked as a GPU's, with checks on every op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._dynamo  # else the first op brings it in, and it would see the GPU
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _device as default_device
from torch.utils._python_dispatch import TorchDispatchMode

# Attributes and methods of a tensor on the GPU.
CLASS: Any = Tensor  # whose properties are descriptors
ANSWERS: dict[Any, object] = {
    CLASS.device.__get__: torch.device("cuda", 0),
    CLASS.is_cuda.__get__: True,
    CLASS.is_cpu.__get__: False,
    Tensor.get_device: 0,
    Tensor.record_stream: None,
}
MOVES = ("to", "cuda", "cpu", "as_tensor", "asarray", "tolist")
FROM_LISTS = ("tensor", "new_tensor", "as_tensor", "asarray")
aten = torch.ops.aten
# Ops that synchronize: the host needs values or their number.
WAITS = (
    *(aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten.bincount),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten._linalg_check_errors),
)
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)

Launch = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], list[Tensor]]


def tensors_in(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for each in value for tensor in tensors_in(each)]


def on_gpu(tensor: Tensor) -> bool:
    # Views, parameters and what autograd keeps all share the memory that is marked.
    return getattr(tensor.untyped_storage(), "on_gpu", False)


def memory_of(tensors: Sequence[Tensor]) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in tensors}


def mark(value: object, is_on_gpu: bool, unless: Sequence[Tensor] = ()) -> None:
    """Marks the device of tensors, except those that share host memory with ``unless``."""
    host = memory_of([tensor for tensor in unless if not on_gpu(tensor)])
    for tensor in tensors_in(value):
        if not host or not host & memory_of([tensor]):
            tensor.untyped_storage().on_gpu = is_on_gpu  # type: ignore[attr-defined]


class Gpu(TorchDispatchMode):
    """The device's state; checks every op before its CPU kernel runs.

    Args:
        default: the default stream, compared by identity.
    """

    def __init__(self, default: object) -> None:
        super().__init__()
        self.default = self.stream = default
        self.sync_mode = 0
        self.makes = False  # whether new tensors are on the device
        self.tape: list[Launch] | None = None  # of the graph being captured
        self.overwritten: list[
            tuple[Tensor, Tensor]
        ] = []  # while capturing: tensor and value before
        self.captured: set[object] = set()
        self.unjoined: set[object] = set()

    def refuse_in_capture(self, what: object = "to synchronize") -> None:
        if self.tape is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")

    def wait(self, what: object) -> None:
        """Raises where a synchronization is not allowed."""
        self.refuse_in_capture(what)
        if self.sync_mode == 2:
            raise RuntimeError(f"called a synchronizing CUDA operation: {what}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = tensors_in((args, kwargs))
        if any(map(on_gpu, inputs)):
            self._check(func, args, kwargs, inputs)
        elif not self.makes:
            return func(*args, **kwargs)
        recorded = self.tape is not None and self.stream in self.captured
        if recorded:
            self.unjoined.add(self.stream)
            targets = _written(func, args, kwargs)
            self.overwritten += [(target, target.clone()) for target in targets]
        outputs = func(*args, **kwargs)
        mark(outputs, True, unless=inputs)
        if self.tape is not None and recorded:
            self.tape.append((func, args, kwargs, tensors_in(outputs)))
        return outputs

    def _check(self, func: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> None:
        op, elsewhere = func.overloadpacket, [t for t in inputs if t.dim() and not on_gpu(t)]
        if op is aten.copy_:
            if elsewhere and not kwargs.get("non_blocking", args[2:] == (True,)):
                self.wait(f"{func} between host and device")
        elif op in INDEXING and on_gpu(args[0]):
            masks = [t for t in args[1] if t is not None and t.dtype in (torch.bool, torch.uint8)]
            # Filling one value under a mask needs no count.
            if elsewhere or (masks and not (len(args) > 2 and args[2].numel() == 1)):
                self.wait(f"{func} by a mask or an index from the host")
        elif elsewhere:
            raise RuntimeError(f"{func}: expected all tensors on one device, not cuda:0 and cpu")
        elif op in WAITS or (op is aten.repeat_interleave and kwargs.get("output_size") is None):
            self.wait(func)


class Devices(TorchFunctionMode):
    """Redirects calls that name the GPU to the CPU, and marks what they return."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        # Other getters name no device, nor does an op of the dispatcher; `_parse_to` returns it.
        plain = name in ("__get__", "_parse_to") and func not in ANSWERS
        if plain or isinstance(func, torch._ops.OpOverload):
            return func(*args, **(kwargs or {}))
        inputs = tensors_in((args, kwargs))
        ours = any(map(on_gpu, inputs))
        if ours and func in ANSWERS:
            return ANSWERS[func]
        if ours and name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        device, args, kwargs = _redirected(func, name, args, dict(kwargs or {}))
        makes = device == "cuda" or (device is None and ours)
        generator = kwargs.get("generator")
        if generator is not None and (generator.device.type == "cuda") != makes:
            raise RuntimeError(f"{name}: a generator on {generator.device} for another device")
        before, self.gpu.makes = self.gpu.makes, makes
        try:
            if inputs and name in MOVES and device is not None and on_gpu(inputs[0]) != makes:
                if not (kwargs.get("non_blocking") or any(value is True for value in args)):
                    self.gpu.wait(name)
                moved = inputs[0].clone()
                mark(moved, makes)
                args = moved, *args[1:]
            elif makes and name in FROM_LISTS and (not ours or name == "new_tensor"):
                self.gpu.wait(name)
            result = args[0] if name == "cuda" else func(*args, **kwargs)
        finally:
            self.gpu.makes = before
        if device is not None or ours:
            mark(result, makes, unless=() if device else inputs)
        return result


def _redirected(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The device type that a call names, or None, and its arguments with the CPU instead."""
    named = kwargs.get("device")
    if name in ("cuda", "cpu", "tolist"):
        named = "cuda" if name == "cuda" else "cpu"
    elif name == "to":
        for value in args[1:]:
            if isinstance(value, Tensor):
                named = "cuda" if on_gpu(value) else value.device
            elif isinstance(value, (str, torch.device)):
                named = value
    elif named is None and func in default_device._device_constructors():
        named = kwargs["device"] = default_device.CURRENT_DEVICE
    device = None if named is None else torch.device(named).type
    if device == "cuda":
        args = tuple("cpu" if isinstance(a, (str, torch.device)) else a for a in args)
        kwargs |= {"device": "cpu"} if "device" in kwargs else {}
    return device, args, kwargs


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an op writes to."""
    if not func._schema.is_mutable:
        return []
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    aliases = [a for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
    return tensors_in([given.get(argument.name) for argument in aliases])
