"""How a function becomes an ocvtp op: schema, checks, fake, autocast, gradient and backends.

`op` decorates a typed function whose body is the op's oracle in plain PyTorch. The schema is
inferred from its signature, so an op exists without a compiler or a GPU. Everything that belongs to
an op (its check, fake, kernels, gradient) is a function that names those of the op's arguments that
it needs; they are bound by name once, when the op is defined, and defaults are filled in once, when
it is called.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache, reduce, wraps
from importlib import import_module
from operator import itemgetter
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast, get_args

import torch
from torch import Tensor

from ocvtp_kernels import backends, checks, native
from ocvtp_kernels.backends import Kernel
from ocvtp_kernels.dtypes import acc_dtype, product_dtype

LIBRARY = torch.library.Library("ocvtp", "DEF")
TAGS = (torch.Tag.pt2_compliant_tag,)
DEVICES = ("CPU", "CUDA")
# What schemas call an argument or an output that Python calls by the field's word.
SCHEMA_NAMES = {
    "reference_tokens": "reference",
    "final_tokens": "final",
    "topk_ids": "picks",
    "max_logprob": "peak",
    "token_score": "evidence",
    "assignment": "owner",
    "max_similarity": "closeness",
}
# Ops that are made of other ops, and so have no backend of their own, with what they are made of.
COMPOSED: dict[str, str] = {}

_REAL = (torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA)
_BelowAutograd = torch._C._AutoDispatchBelowAutograd
Function = Callable[..., Any]
P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Op(Protocol[P, R_co]):
    """A public op: a function that calls ``torch.ops.ocvtp.<name>``."""

    __name__: str
    reference: Callable[..., Any]  # the oracle, plain PyTorch in the dtype of its arguments

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Runs the op on the backend that takes the arguments."""
        ...


class Gradient(NamedTuple):
    """How an op is differentiated."""

    # Of ctx, the output, and the op's arguments that it names.
    save: Callable[..., None]
    # Of ctx and the outputs' gradients: the gradients of the inputs that have one, by name.
    backward: Callable[..., Mapping[str, Tensor | None]]
    # Of the op's arguments: the op on a CPU where a gradient is to come, keeping what is expensive
    # to compute again.
    on_cpu: Function | None = None
    # Whether torch differentiates plain PyTorch, where a CPU runs that.
    through_plain: bool = False


class Autocast(NamedTuple):
    """What autocast makes of an op's floating arguments.

    They come to one dtype: the one that autocast multiplies in, or else the widest of their own,
    so that none is copied where they agree. Sums are in float32 or wider either way.
    """

    multiplies: bool = False  # whether it may be the dtype of autocast
    no_autocast: Collection[str] = ()  # arguments that stay as they are
    cast: Mapping[str, Callable[[Any, torch.dtype], Any]] = {}  # how, where not by `Tensor.to`


class Upcast(NamedTuple):
    """The oracle with its floating arguments cast, as a CPU runs it in half precision."""

    to: Callable[[torch.dtype, torch.device], torch.dtype] = lambda dtype, _: acc_dtype(dtype)
    uncast: Collection[str] = ()  # arguments that stay as they are
    narrow: bool = False  # whether floating outputs return to the dtype of the first argument


class _Signature(NamedTuple):
    """An op's arguments, in order."""

    names: tuple[str, ...]
    defaults: tuple[Any, ...]  # of the last ones
    tensors: frozenset[str]  # those that must be tensors

    @classmethod
    def of(cls, function: Function) -> _Signature:
        parameters = inspect.signature(function, eval_str=True).parameters
        defaults = [one.default for one in parameters.values()]
        return cls(
            tuple(parameters),
            tuple(d for d in defaults if d is not inspect.Parameter.empty),
            frozenset(name for name, one in parameters.items() if one.annotation is Tensor),
        )

    def filled(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """All arguments: the dispatcher leaves out those that equal their defaults."""
        missing = len(self.names) - len(args)
        return args + self.defaults[-missing:] if missing else args

    def refuse(self, given: Mapping[str, Any]) -> None:
        """Raises TypeError by the first argument that is no dense tensor on a CPU or a GPU."""
        for name, one in self._tensors_of(given):
            _require_ours(name, one)

    def refuse_inference(self, error: Exception, given: Mapping[str, Any]) -> None:
        """Raises ValueError by the argument of inference mode that a gradient cannot be kept of."""
        if "inference" not in str(error).lower():
            return
        for name, one in self._tensors_of(given):
            if isinstance(one, Tensor) and one.is_inference():
                raise ValueError(
                    f"{name}: expected a tensor made outside inference mode, as a gradient is to "
                    "come; clone() makes one"
                ) from error

    def _tensors_of(self, given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Tensors, and those in lists, by name; None where there must be one."""
        for name in self.names:
            value = given.get(name)
            if isinstance(value, (list, tuple)):
                yield from ((f"{name}[{place}]", one) for place, one in enumerate(value))
            elif isinstance(value, Tensor) or (value is None and name in self.tensors):
                yield name, value

    def named(self, args: Iterable[Any]) -> dict[str, Any]:
        """Arguments by name."""
        return dict(zip(self.names, args, strict=False))

    def bind(self, function: Function, leading: int = 0) -> Function:
        """``function`` of all arguments of the op, of which it takes those that it names.

        Args:
            leading: arguments before the op's own, handed through.
        """
        parameters = [
            one
            for one in inspect.signature(function).parameters.values()
            if one.kind is not one.KEYWORD_ONLY
        ][leading:]
        if any(one.kind is one.VAR_POSITIONAL for one in parameters):
            return function
        unknown = [one.name for one in parameters if one.name not in self.names]
        if unknown:
            raise TypeError(f"{function.__qualname__}: the op has no argument {unknown[0]!r}")
        places = [self.names.index(one.name) for one in parameters]
        if places == list(range(len(self.names))):
            return function
        if places == list(range(len(places))):
            count = leading + len(places)
            return lambda *args: function(*args[:count])
        select = itemgetter(*range(leading), *(leading + place for place in places))
        if leading + len(places) == 1:
            return lambda *args: function(select(args))
        return lambda *args: function(*select(args))


def op(
    *,
    check: Callable[..., None],
    fake: Function,
    outputs: Sequence[str] = (),
    values: Callable[..., None] | None = None,
    cpu: Function | None = None,
    plain: Function | Upcast | None = None,
    cuda: Function | None = None,
    triton: str | None = None,
    unsupported: Mapping[str, Callable[..., str | None]] | None = None,
    reference: Upcast | None = None,
    autocast: Autocast | None = None,
    gradient: Gradient | None = None,
    serves_backward: bool = False,
) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Decorates a function that becomes ``ocvtp::<its name>``; its body is the op's oracle.

    The first argument is a tensor, whose device decides what runs. All functions below name the
    op's arguments that they need.

    Args:
        check: raises on bad shapes, dtypes or devices; called under tracing too.
        fake: the outputs, as tensors without values.
        outputs: their names in the schema, where there are several.
        values: raises on bad values of tensors on a CPU, which plain PyTorch would read past; the
            native kernels look themselves.
        cpu: the kernel of the native objects.
        plain: what a CPU runs without native objects: a function, or how the oracle's arguments are
            cast; what the reference backend runs if None.
        cuda: the CUDA C++ kernel.
        triton: the module of the op's folder that holds the Triton kernel, a function of the op's
            name. It is imported when first called: the package does without Triton.
        unsupported: by backend, the sentence why it cannot take the arguments, or None.
        reference: how the reference backend casts the oracle's arguments; not at all if None.
        autocast: what autocast makes of the arguments.
        gradient: how it is differentiated; without one its outputs carry no gradient.
        serves_backward: it is called by the backward pass of another op, see
            `backends.select_kernel`.
    """

    def define(function: Callable[P, R]) -> Op[P, R]:
        name, signature = function.__name__, _Signature.of(function)
        oracle = _upcast(function, signature, reference) if reference else function
        oracle = _contiguous(oracle)
        oracle = _checking_values(signature.bind(values), oracle) if values else oracle
        kernels: dict[str, Function] = {"reference": oracle}
        without = _upcast(function, signature, plain) if isinstance(plain, Upcast) else plain
        without = _contiguous(signature.bind(without)) if without else oracle
        kernels["cpu"] = _if_built(signature.bind(cpu), without) if cpu else without
        if triton:
            kernels["triton"] = _lazy(f"{function.__module__}.{triton}", name, signature)
        if cuda:
            kernels["cuda"] = signature.bind(cuda)
        reasons = {
            backend: _with_defaults(signature, reason)
            for backend, reason in (unsupported or {}).items()
        }
        for backend, kernel in kernels.items():
            backends.register(name, backend, Kernel(kernel, reasons.get(backend)))
        LIBRARY.define(name + _schema(function, outputs), tags=TAGS)
        checked = signature.bind(check)
        _register(
            name, signature, checked, signature.bind(fake), serves_backward, gradient, without
        )
        _register_autocast(name, signature, autocast or Autocast())
        return _public(function, function)

    return define


def composite(parts: str, reference: Function) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Decorates a function that becomes an op made of others.

    Gradients, fakes, backends and autocast are theirs.

    Args:
        parts: what it is made of, for `ocvtp doctor`.
        reference: its oracle.
    """

    def define(function: Callable[P, R]) -> Op[P, R]:
        name, signature = function.__name__, _Signature.of(function)
        COMPOSED[name] = parts
        LIBRARY.define(name + _schema(function, ()), tags=TAGS)

        made_of_others = cast(Function, function)

        def run(*args: Any) -> Any:
            try:
                return made_of_others(*args)
            except (RuntimeError, ValueError) as error:
                signature.refuse_inference(error, signature.named(args))
                raise

        LIBRARY.impl(name, run, "CompositeImplicitAutograd")
        return _public(function, reference)

    return define


def _schema(function: Function, outputs: Sequence[str]) -> str:
    schema = torch.library.infer_schema(function, mutates_args=())
    arguments, _, result = schema.partition(" -> ")
    if outputs:
        kinds = result.strip("()").split(", ")
        result = f"({', '.join(f'{k} {n}' for k, n in zip(kinds, outputs, strict=True))})"
    schema = f"{arguments} -> {result}"
    return re.sub(r"\w+", lambda word: SCHEMA_NAMES.get(word[0], word[0]), schema)


def _public(function: Callable[P, R], reference: Function) -> Op[P, R]:
    """The function that users call, with the signature and docstring of ``function``."""
    overload = getattr(torch.ops.ocvtp, function.__name__).default
    parameters = inspect.signature(function, eval_str=True).parameters
    of_numbers = {name: _check_of_number(one.annotation) for name, one in parameters.items()}
    numbers = {name: check for name, check in of_numbers.items() if check}
    places = [(place, name) for place, name in enumerate(parameters) if name in numbers]
    signature = _Signature.of(function)

    @wraps(function)
    def public(*args: P.args, **kwargs: P.kwargs) -> R:
        # The dispatcher takes True for 1, and waits for a number that is a tensor.
        for place, name in places:
            if place < len(args):
                numbers[name](name, args[place])
        named = {}
        for name, value in kwargs.items():
            if name in numbers:
                numbers[name](name, value)
            named[SCHEMA_NAMES.get(name, name)] = value
        try:
            return cast(R, overload(*args, **named))
        except NotImplementedError:
            # By a subclass of Tensor, such as jagged ones, before any kernel is asked.
            signature.refuse({**signature.named(args), **kwargs})
            raise

    made = cast(Any, public)
    made.__signature__ = inspect.signature(function, eval_str=True)
    made.reference = reference
    return cast("Op[P, R]", made)


def _require_ours(name: str, tensor: Any) -> None:
    """Raises TypeError unless it is a dense tensor on a device that ops have kernels for."""
    checks.require_tensor(name, tensor)
    if tensor.device.type.upper() not in (*DEVICES, "META"):
        kinds = " or ".join(DEVICES)
        raise TypeError(f"{name}: expected a tensor on {kinds}, got {tensor.device}")


def _check_of_number(annotation: Any) -> Callable[[str, Any], None] | None:
    """What checks an argument that is a number or a bool; None of others."""
    kinds = get_args(annotation) or (annotation,)
    checked = (bool, checks.require_bool), (int, checks.require_int), (float, checks.require_number)
    check = next((check for kind, check in checked if kind in kinds), None)
    if check is None or type(None) not in kinds:
        return check

    def check_if_given(name: str, value: Any) -> None:
        if value is not None:
            check(name, value)

    return check_if_given


def _lazy(module: str, name: str, signature: _Signature) -> Function:
    """The function ``name`` of ``module``, imported when first called."""

    @cache
    def load() -> Function:
        return signature.bind(getattr(import_module(module), name))

    return lambda *args: load()(*args)


def _if_built(kernel: Function, plain: Function) -> Function:
    """The CPU kernel where the native objects load, else plain PyTorch."""

    def run(*args: Any) -> Any:
        return kernel(*args) if native.is_built() else plain(*args)

    return run


def _contiguous(function: Function) -> Function:
    """Plain PyTorch whose outputs lie in memory as the fakes say, not as its arguments do."""

    def run(*args: Any) -> Any:
        result = function(*args)
        if isinstance(result, Tensor):
            return result.contiguous()
        return tuple(tensor.contiguous() for tensor in result)

    return run


def _checking_values(values: Function, function: Function) -> Function:
    def run(*args: Any) -> Any:
        if args[0].is_cpu:
            values(*args)
        return function(*args)

    return run


def _with_defaults(signature: _Signature, function: Function) -> Function:
    bound = signature.bind(function)
    return lambda *args: bound(*signature.filled(args))


def _upcast(function: Function, signature: _Signature, upcast: Upcast) -> Function:
    casts = [name not in upcast.uncast for name in signature.names]

    def run(*args: Any) -> Any:
        first: Tensor = args[0]
        result = function(
            *(
                value.to(upcast.to(value.dtype, value.device))
                if is_cast and isinstance(value, Tensor) and value.is_floating_point()
                else value
                for value, is_cast in zip(args, casts, strict=True)
            )
        )
        return _cast(result, first.dtype) if upcast.narrow else result

    return run


def _register(
    name: str,
    signature: _Signature,
    check: Function,
    fake: Function,
    serves_backward: bool,
    gradient: Gradient | None,
    plain: Function,
) -> None:
    """The op on real tensors, on fake ones, and above autograd."""
    filled = signature.filled

    def run(*args: Any) -> Any:
        args = filled(args)
        check(*args)
        kernel = backends.select_kernel(name, args, serves_backward)
        index = args[0].device.index
        if index is None or index == torch.cuda.current_device():
            return kernel(*args)
        # Kernels launch on the current device.
        with torch.cuda.device(index):
            return kernel(*args)

    def run_fake(*args: Any) -> Any:
        args = filled(args)
        check(*args)
        return fake(*args)

    def run_without_gradient(*args: Any) -> Any:
        with _BelowAutograd():
            return run(*args)

    def refuse(*args: Any) -> None:
        signature.refuse(signature.named(args))
        raise NotImplementedError(f"ocvtp::{name} has no kernel for these tensors")

    for device in DEVICES:
        LIBRARY.impl(name, run if gradient else run_without_gradient, device)
    # Where the dispatcher knows no kernel, nor any tensor: sparse, quantized, on other devices.
    nested = (f"NestedTensor{device}" for device in (*DEVICES, "Meta"))
    for key in ("CompositeExplicitAutograd", *nested):
        LIBRARY.impl(name, refuse, key)
    torch.library.register_fake(f"ocvtp::{name}", run_fake, lib=LIBRARY)
    if gradient:
        _register_autograd(name, signature, gradient, check, run, plain)
    else:
        LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")


def _register_autograd(
    name: str,
    signature: _Signature,
    gradient: Gradient,
    check: Function,
    run: Function,
    plain: Function,
) -> None:
    """As `torch.library.register_autograd`, with less of the host's time where none is to come.

    No gradient comes to tensors of a list.

    Args:
        check: of the op's arguments.
        run: the op on real tensors, below autograd.
        plain: what a CPU runs without native objects.
    """
    overload = getattr(torch.ops.ocvtp, name).default
    save, grads_of = signature.bind(gradient.save, leading=2), gradient.backward
    on_cpu = gradient.on_cpu and _contiguous(signature.bind(gradient.on_cpu))

    def forward(ctx: Any, keyset: Any, *args: Any) -> Any:
        with _BelowAutograd():
            output = overload.redispatch(keyset & torch._C._after_autograd_keyset, *args)
        ctx.remembered = backends.remember(args[0].device)
        save(ctx, output, *args)
        return output

    def backward(ctx: Any, *grads: Any) -> Any:
        # On the backend that `ocvtp_kernels.backends.use_backend` promises.
        with backends.in_backward(ctx.remembered):
            found = grads_of(ctx, *grads)
        return (None, *map(found.get, signature.names))

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    differentiable: Any = type(f"Ocvtp_{name}", (torch.autograd.Function,), methods)

    def run_with_gradient(keyset: Any, *args: Any) -> Any:
        if isinstance(args[0], Tensor) and args[0].is_cpu and backends.override() in (None, "cpu"):
            through_plain = gradient.through_plain and not native.is_built()
            function = plain if through_plain else on_cpu
            if function is not None:
                check(*args)
                return function(*args)
        return differentiable.apply(keyset, *args)

    def run_autograd(keyset: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            args = signature.filled(args)
            try:
                return run_with_gradient(keyset, *args)
            except RuntimeError as error:
                # A function on a CPU is called past the dispatcher, which would refuse.
                signature.refuse(signature.named(args))
                signature.refuse_inference(error, signature.named(args))
                raise
        below = keyset & torch._C._after_autograd_keyset
        with _BelowAutograd():
            if below.highestPriorityTypeId() in _REAL:
                return run(*args)  # the dispatcher would call just that
            return overload.redispatch(below, *args)

    LIBRARY.impl(name, run_autograd, "Autograd", with_keyset=True)


def _register_autocast(name: str, signature: _Signature, autocast: Autocast) -> None:
    overload = getattr(torch.ops.ocvtp, name).default
    # How each argument is cast; None leaves it.
    casts = [
        None if argument in autocast.no_autocast else autocast.cast.get(argument, _cast)
        for argument in signature.names
    ]

    for device in DEVICES:
        device_type = device.lower()

        def run(*args: Any, device_type: str = device_type) -> Any:
            given = list(zip(args, casts, strict=False))
            dtypes = set(_dtypes(value for value, cast in given if cast))
            if not dtypes or not dtypes.issubset(checks.FLOATING):
                # None to cast, or one that the op's check names.
                with torch.autocast(device_type, enabled=False):
                    return overload(*args)
            dtype = reduce(torch.promote_types, dtypes)
            wanted = torch.get_autocast_dtype(device_type)
            can = autocast.multiplies and product_dtype(wanted, torch.device(device_type)) == wanted
            if can and dtype != torch.float64:
                dtype = wanted
            with torch.autocast(device_type, enabled=False):
                return overload(*(cast(value, dtype) if cast else value for value, cast in given))

        LIBRARY.impl(name, run, f"Autocast{device}")


def _dtypes(values: Iterable[Any]) -> Iterator[torch.dtype]:
    """The floating dtypes of tensors, and of those in lists."""
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            yield value.dtype
        elif isinstance(value, (list, tuple)):
            yield from _dtypes(value)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors, and those in lists, in ``dtype``; others as they are, to be refused."""
    if isinstance(value, Tensor):
        castable = value.is_floating_point() and value.layout is torch.strided
        return value.to(dtype) if castable else value
    if isinstance(value, (list, tuple)):
        cast = [_cast(element, dtype) for element in value]
        return tuple(cast) if isinstance(value, tuple) else cast
    return value
