"""How an ocvtp op is made: schema, checks, backends, fake and autocast rule in one call.

Schemas are defined here in Python, so the ops exist without a compiler or a GPU; a kernel, in
whatever language, registers with `ocvtp_kernels.backends` and is chosen on the real tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache, reduce
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels import backends
from ocvtp_kernels.backends import Kernel
from ocvtp_kernels.dtypes import product_dtype

LIBRARY = torch.library.Library("ocvtp", "DEF")
TAGS = (torch.Tag.pt2_compliant_tag,)
DEVICES = ("CPU", "CUDA")
_REAL = (torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA)
_BelowAutograd = torch._C._AutoDispatchBelowAutograd


class Gradient(NamedTuple):
    """How an op is differentiated."""

    save: Callable[[Any, tuple[Any, ...], Any], None]  # of ctx, inputs, output
    backward: Callable[..., Any]  # of ctx and the outputs' gradients
    # The op where a gradient is to come, on a CPU: it keeps what it would cost to make again. Or
    # NotImplemented, which goes the way of all devices.
    on_cpu: Callable[..., Any] | None = None


class Autocast(NamedTuple):
    """What autocast makes of an op's floating arguments.

    They come to one dtype: the one that autocast multiplies in, or else the widest of their own,
    so that none is copied where they agree. Sums are in float32 or wider either way.
    """

    multiplies: bool = False  # whether it may be the dtype of autocast
    keep: Collection[str] = ()  # arguments that stay as they are
    cast: Mapping[str, Callable[[Any, torch.dtype], Any]] = {}  # how, where not by `Tensor.to`


_WIDEST = Autocast()

# Ops that are made of other ops, and so have no backend of their own.
COMPOSED: dict[str, str] = {}


def lazy(module: str, name: str) -> Callable[..., Any]:
    """The function ``name`` of ``ocvtp_kernels.module``, imported when first called.

    Triton need not be installed to import this package, only to run what needs it.
    """

    @cache
    def load() -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(import_module(f"ocvtp_kernels.{module}"), name)
        return function

    return lambda *args: load()(*args)


def define(
    schema: str,
    *,
    check: Callable[..., None],
    fake: Callable[..., Any],
    kernels: Mapping[str, Callable[..., Any]],
    refuse: Mapping[str, Callable[..., str | None]] | None = None,
    autocast: Autocast = _WIDEST,
    gradient: Gradient | None = None,
    is_gradient: bool = False,
) -> None:
    """Defines ``ocvtp::<schema>``; its first argument is a tensor, whose device decides.

    Args:
        schema: the op's schema, namespace left out.
        check: raises on bad shapes, dtypes or devices; called with the op's arguments, under
            tracing too.
        fake: the outputs' shapes and dtypes, from the op's arguments.
        kernels: implementation by backend name.
        refuse: by backend name, of the op's arguments: the sentence why it cannot take them.
        autocast: what autocast makes of its arguments.
        gradient: how it is differentiated; without one its outputs carry no gradient.
        is_gradient: it serves the backward pass of another op, see `backends.choose`.
    """
    name = schema.split("(")[0]
    for backend, kernel in kernels.items():
        backends.register(name, backend, Kernel(kernel, (refuse or {}).get(backend)))
    LIBRARY.define(schema, tags=TAGS)

    def run(*args: Any) -> Any:
        check(*args)
        kernel = backends.choose(name, args, is_gradient)
        index = args[0].device.index
        if index is None or index == torch.cuda.current_device():
            return kernel(*args)
        # Kernels launch on the current device.
        with torch.cuda.device(index):
            return kernel(*args)

    def run_fake(*args: Any) -> Any:
        check(*args)
        return fake(*args)

    def run_without_gradient(*args: Any) -> Any:
        with _BelowAutograd():
            return run(*args)

    for device in DEVICES:
        LIBRARY.impl(name, run if gradient else run_without_gradient, device)
    torch.library.register_fake(f"ocvtp::{name}", run_fake, lib=LIBRARY)
    if gradient:
        _register_autograd(name, gradient, check, run)
    else:
        LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
    _register_autocast(name, autocast)


def compose(schema: str, function: Callable[..., Any], parts: str) -> None:
    """Defines an op as a composition of others; gradients, fakes, backends, autocast are theirs.

    Args:
        schema: the op's schema, namespace left out.
        function: the composition.
        parts: what it is made of, for `ocvtp doctor`.
    """
    name = schema.split("(")[0]
    COMPOSED[name] = parts
    LIBRARY.define(schema, tags=TAGS)
    LIBRARY.impl(name, function, "CompositeImplicitAutograd")


def _register_autograd(
    name: str, gradient: Gradient, check: Callable[..., None], run: Callable[..., Any]
) -> None:
    """As `torch.library.register_autograd`, with less of the host's time where none is to come.

    No gradient comes to tensors of a list.

    Args:
        name: the op's.
        gradient: how it is differentiated.
        check: of its arguments.
        run: the op on real tensors, below autograd.
    """
    op = getattr(torch.ops.ocvtp, name).default
    defaults = tuple(argument.default_value for argument in op._schema.arguments)
    on_cpu, save, grads_of = gradient.on_cpu, gradient.save, gradient.backward

    def forward(ctx: Any, keyset: Any, *args: Any) -> Any:
        with _BelowAutograd():
            output = op.redispatch(keyset & torch._C._after_autograd_keyset, *args)
        ctx.remembered = backends.remember(args[0].device)
        # The dispatcher leaves defaults out.
        save(ctx, (*args, *defaults[len(args) :]), output)
        return output

    def backward(ctx: Any, *grads: Any) -> Any:
        # On the backend that `ocvtp_kernels.backends.use_backend` promises.
        with backends.in_backward(ctx.remembered):
            return (None, *grads_of(ctx, *grads))

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    differentiable: Any = type(f"Ocvtp_{name}", (torch.autograd.Function,), methods)

    def run_autograd(keyset: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            if on_cpu and args[0].is_cpu and backends.forced() in (None, "cpu"):
                check(*args)
                output = on_cpu(*args)
                if output is not NotImplemented:
                    return output
            return differentiable.apply(keyset, *args)
        below = keyset & torch._C._after_autograd_keyset
        with _BelowAutograd():
            if below.highestPriorityTypeId() in _REAL:
                return run(*args)  # the dispatcher would call just that
            return op.redispatch(below, *args)

    LIBRARY.impl(name, run_autograd, "Autograd", with_keyset=True)


def _register_autocast(name: str, autocast: Autocast) -> None:
    op = getattr(torch.ops.ocvtp, name).default
    names = [argument.name for argument in op._schema.arguments]
    # How each argument is cast; None leaves it.
    casts = [None if name in autocast.keep else autocast.cast.get(name, _cast) for name in names]

    for device in DEVICES:
        device_type = device.lower()

        def run(*args: Any, device_type: str = device_type) -> Any:
            given = list(zip(args, casts, strict=False))
            dtype = reduce(torch.promote_types, _dtypes(value for value, cast in given if cast))
            wanted = torch.get_autocast_dtype(device_type)
            can = autocast.multiplies and product_dtype(wanted, args[0].device) == wanted
            if can and dtype != torch.float64:
                dtype = wanted
            with torch.autocast(device_type, enabled=False):
                return op(*(cast(value, dtype) if cast else value for value, cast in given))

        LIBRARY.impl(name, run, f"Autocast{device}")


def _dtypes(values: Iterable[Any]) -> Iterator[torch.dtype]:
    """The floating dtypes of tensors, and of those in lists."""
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            yield value.dtype
        elif isinstance(value, (list, tuple)):
            yield from _dtypes(value)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    if isinstance(value, (list, tuple)):
        return [_cast(element, dtype) for element in value]
    return value
