"""How an ocvtp op is made: schema, checks, backends, fake and autocast rule in one call.

Schemas are defined here in Python, so the ops exist without a compiler or a GPU; a kernel, in
whatever language, registers with `ocvtp_kernels.backends` and is chosen on the real tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ocvtp_kernels import backends
from ocvtp_kernels.backends import Kernel

LIBRARY = torch.library.Library("ocvtp", "DEF")
TAGS = (torch.Tag.pt2_compliant_tag,)
DEVICES = ("CPU", "CUDA")


class Gradient(NamedTuple):
    """How an op is differentiated."""

    save: Callable[[Any, tuple[Any, ...], Any], None]  # of ctx, inputs, output
    backward: Callable[..., Any]  # of ctx and the outputs' gradients


def _same_backend(gradient: Gradient) -> Gradient:
    """``gradient`` on the backend that `ocvtp_kernels.backends.use_backend` promises."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.remembered = backends.remember(inputs[0].device)
        gradient.save(ctx, inputs, output)

    def backward(ctx: Any, *grads: Any) -> Any:
        with backends.in_backward(ctx.remembered):
            return gradient.backward(ctx, *grads)

    return Gradient(save, backward)


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.mark_non_differentiable(*([output] if isinstance(output, Tensor) else output))


NO_GRADIENT = Gradient(save=_save_nothing, backward=lambda ctx, *_: None)

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
    keep: Collection[str] = (),
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
        keep: arguments that autocast leaves as they are. The other floating tensors go to
            float32 there: softmax and argmax over slots want it, as PyTorch's own softmax does.
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

    for device in DEVICES:
        LIBRARY.impl(name, run, device)
    torch.library.register_fake(f"ocvtp::{name}", run_fake, lib=LIBRARY)
    gradient = NO_GRADIENT if gradient is None else _same_backend(gradient)
    torch.library.register_autograd(
        f"ocvtp::{name}", gradient.backward, setup_context=gradient.save, lib=LIBRARY
    )
    _register_autocast(name, keep)


def compose(schema: str, function: Callable[..., Any], parts: str) -> None:
    """Defines an op as a composition of others; gradients, fakes and backends are theirs.

    Args:
        schema: the op's schema, namespace left out.
        function: the composition.
        parts: what it is made of, for `ocvtp doctor`.
    """
    name = schema.split("(")[0]
    COMPOSED[name] = parts
    LIBRARY.define(schema, tags=TAGS)
    LIBRARY.impl(name, function, "CompositeImplicitAutograd")
    _register_autocast(name, ())


def _register_autocast(name: str, keep: Collection[str]) -> None:
    op = getattr(torch.ops.ocvtp, name).default
    kept = [argument.name in keep for argument in op._schema.arguments]

    for device in DEVICES:
        device_type = device.lower()

        def run(*args: Any, device_type: str = device_type) -> Any:
            with torch.autocast(device_type, enabled=False):
                return op(
                    *(
                        value if keep_it else _to_float32(value)
                        for value, keep_it in zip(args, kept, strict=False)
                    )
                )

        LIBRARY.impl(name, run, f"Autocast{device}")


def _to_float32(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.float()
    if isinstance(value, (list, tuple)):
        return [_to_float32(element) for element in value]
    return value
