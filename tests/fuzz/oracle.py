"""What a result has to be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.fuzz.calls import Call
from tests.fuzz.draw import DTYPES, Draw, has_memory, map_tensors, tensors_of

FACTOR = 2  # of plain PyTorch's error
DRAWS = 3  # of roundings
MOST_DRAWS = 30  # before a result is wrong


class Wrong(AssertionError):
    """A result is not what the docstring says; the message says how."""


def require(holds: bool, message: str) -> None:
    if not holds:
        raise Wrong(message)


def outputs_of(result: Any) -> list[Tensor]:
    """The tensors of a result, in order."""
    return tensors_of(result)


def bits(tensor: Tensor) -> Tensor:
    """All bytes of a tensor's values."""
    values = tensor.detach().resolve_neg().resolve_conj().flatten()
    return torch.empty(values.shape, dtype=values.dtype).copy_(values).view(torch.uint8)


def is_same(one: Tensor, other: Tensor) -> bool:
    """Shape, dtype and every bit."""
    alike = one.shape == other.shape and one.dtype == other.dtype
    return alike and torch.equal(bits(one), bits(other))


class Snapshot:
    """The memory of a call's arguments before it."""

    def __init__(self, arguments: Any) -> None:
        self.tensors = [t for t in tensors_of(arguments) if has_memory(t)]
        self.before = [memory(t).clone() for t in self.tensors]
        self.shapes = [(t.shape, t.stride(), t.requires_grad) for t in self.tensors]

    def check(self) -> None:
        for tensor, before, shape in zip(self.tensors, self.before, self.shapes, strict=True):
            require(torch.equal(memory(tensor), before), "an argument's memory was written to")
            now = (tensor.shape, tensor.stride(), tensor.requires_grad)
            require(now == shape, f"an argument is {now} after the call, {shape} before")

    def check_apart(self, results: Sequence[Tensor]) -> None:
        """No result lies in the memory of an argument."""
        own = {t.untyped_storage().data_ptr() for t in self.tensors if t.untyped_storage().nbytes()}
        for place, result in enumerate(results):
            shared = result.numel() and result.untyped_storage().data_ptr() in own
            require(not shared, f"output {place} shares memory with an argument")


def memory(tensor: Tensor) -> Tensor:
    """The bytes that a tensor is in."""
    with torch.inference_mode():
        return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def wide(tensor: Tensor) -> Tensor:
    return own(tensor).double() if tensor.is_floating_point() else own(tensor)


def own(tensor: Tensor) -> Tensor:
    """As it is, and no tensor of inference mode, of which autograd keeps none."""
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()


# Ops that return numbers that they are given, and round none.
EXACT = (
    *("abs", "clamp", "clamp_max", "clamp_min", "nan_to_num", "neg", "relu", "sign"),
    *("amax", "amin", "max", "maximum", "min", "minimum", "sort", "topk"),
    *("gather", "index", "index_put", "index_select", "masked_fill", "scatter", "where"),
    *("cat", "clone", "constant_pad_nd", "copy", "flip", "repeat", "roll", "stack"),
    *("select_scatter", "slice_scatter", "tril", "triu"),
)


class Rounding(TorchDispatchMode):
    """Within the block every number that an op computes is off by up to a rounding.

    What this moves, ids at a tie or digits that cancel, another order of sums may move too
    (D. S. Parker, Monte Carlo Arithmetic, 1997).
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = [t for t in tensors_of((args, kwargs)) if t.dtype in DTYPES]
        is_copy = any(one.alias_info for one in func._schema.returns)
        if not given or is_copy or func.overloadpacket.__name__ in EXACT:
            return result
        # Whole numbers count something.
        is_whole = all(bool((t == t.round()).all()) for t in given)
        return map_tensors(partial(self._rounded, is_whole), result)

    def _rounded(self, is_whole: bool, tensor: Tensor) -> Tensor:
        if tensor.dtype not in DTYPES:
            return tensor
        noise = torch.rand(tensor.shape, generator=self.generator, dtype=torch.float64) * 2 - 1
        moved = tensor.double() * (1 + torch.finfo(tensor.dtype).eps * noise)
        return torch.where(is_whole & (tensor == tensor.round()), tensor, moved.to(tensor.dtype))


def off_by_a_rounding(generator: torch.Generator, tensor: Tensor) -> Tensor:
    """Its numbers, each off by up to a rounding or two of its dtype."""
    if tensor.dtype not in DTYPES or not has_memory(tensor):
        return tensor.detach()
    eps = torch.finfo(tensor.dtype).eps
    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * 2 - 1
    values = tensor.detach().double()
    # What zeros are summed with rounds, so they are moved too.
    size = values.abs().nan_to_num(0.0, 0.0, 0.0).max() if values.numel() else 0.0
    scale = torch.where(values == 0, size or 1.0, values)
    return (values + 2 * eps * noise * scale).to(tensor.dtype)


def moved_by_roundings(generator: torch.Generator, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All numbers of the arguments so."""
    moved = map_tensors(partial(off_by_a_rounding, generator), dict(arguments))
    found = [torch.finfo(t.dtype).eps for t in tensors_of(moved) if t.dtype in DTYPES]
    # Towards 0, as numbers have ranges.
    noise = 2 * max(found, default=0.0) * float(torch.rand((), generator=generator))
    return {n: v * (1 - noise) if isinstance(v, float) else v for n, v in moved.items()}


def check_fake(call: Call, arguments: Mapping[str, Any], results: Sequence[Tensor]) -> None:
    """Without values the outputs have the same shapes, dtypes and strides."""
    mode = FakeTensorMode()
    numbers = {name: as_number(call, value) for name, value in arguments.items()}
    given = map_tensors(lambda t: mode.from_tensor(t.detach()), numbers)
    with mode, torch.no_grad():
        fakes = outputs_of(call.function(**given))
    require(len(fakes) == len(results), "the fake has another number of outputs")
    for place, (fake, real) in enumerate(zip(fakes, results, strict=True)):
        told, is_so = ((tuple(t.shape), t.dtype, strides(t)) for t in (fake, real))
        require(told == is_so, f"output {place}: the fake says {told}, it is {is_so}")


def strides(tensor: Tensor) -> tuple[int, ...]:
    """Those that mean something."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return tuple(step for size, step in steps if size > 1) if tensor.numel() else ()


def check_kept(call: Call, ids: Tensor, num_tokens: int) -> None:
    """Ascending, distinct and in range; -1 last where there may be fewer."""
    require(ids.dtype == torch.int64, f"ids are {ids.dtype}")
    missing = ids < 0
    require(call.is_padded or not bool(missing.any()), "an id is below 0")
    require(bool((missing.int().diff(dim=-1) >= 0).all()), "an id follows a missing one")
    require(bool((ids[missing] == -1).all()), "a missing id is not -1")
    steps = ids.diff(dim=-1)
    ascending = (steps >= 0 if call.repeats_ids else steps > 0) | missing[..., 1:]
    require(bool(ascending.all()), "ids are not ascending and distinct")
    require(not ids.numel() or int(ids.max()) < num_tokens, f"an id is past {num_tokens} tokens")


@dataclass
class Wanted:
    """Which gradients of a call are compared: of these outputs, in these tensors."""

    outputs: list[int]
    inputs: list[int]
    seed: int

    @classmethod
    def of(cls, results: Sequence[Tensor], inputs: Sequence[Tensor], seed: int) -> Wanted:
        """All that a result's own graph has."""
        outputs = [place for place, one in enumerate(results) if one.requires_grad]
        places = [place for place, one in enumerate(inputs) if one.requires_grad and one.is_leaf]
        wanted = cls(outputs, places, seed)
        if outputs and places:
            found = wanted._autograd(results, inputs)
            wanted.inputs = [p for p, g in zip(places, found, strict=True) if g is not None]
        else:
            wanted.inputs = []
        return wanted

    def gradients(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        """Of random numbers times the outputs."""
        if not self.inputs:
            return []
        found = zip(self._autograd(outputs, inputs), self.inputs, strict=True)
        return [torch.zeros_like(inputs[p]) if grad is None else grad for grad, p in found]

    def _autograd(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        generator = torch.Generator().manual_seed(self.seed)
        some = [outputs[place] for place in self.outputs]
        grads = [torch.randn(one.shape, generator=generator).to(one.dtype) for one in some]
        # An output of an op has a gradient though it may not depend on what asks for one.
        pairs = [(one, grad) for one, grad in zip(some, grads, strict=True) if one.requires_grad]
        leaves = [inputs[place] for place in self.inputs]
        if not pairs:
            return [None] * len(leaves)
        some, grads = map(list, zip(*pairs, strict=True))
        return torch.autograd.grad(some, leaves, grads, allow_unused=True, retain_graph=True)


class Oracle:
    """The reference's results in float64, and how much a rounding moves them."""

    def __init__(self, call: Call, arguments: Mapping[str, Any], draw: Draw) -> None:
        self.call = call
        self.arguments = {name: as_number(call, value) for name, value in arguments.items()}
        self.seed = draw.getrandbits(63)

    def compute(self, wanted: Wanted) -> None:
        """What results and gradients have to be near to."""
        self.wanted = wanted
        self.generator = torch.Generator().manual_seed(self.seed)
        self.exact = self._run(self.call.oracle, self.arguments, wide)
        self.plain = self._run(self.call.plain, self.arguments, own)
        self.moved: list[list[Tensor]] = []
        self.roundings = [(self.plain, self.exact)]
        for _ in range(DRAWS):
            self._move(nullcontext())

    def _move(self, rounding: AbstractContextManager[Any]) -> None:
        """The same of inputs that are off by a rounding, and plain PyTorch's in ``rounding``."""
        moved = moved_by_roundings(self.generator, self.arguments)
        self.moved.append(self._run(self.call.oracle, moved, wide))
        with rounding:
            plain = self._run(self.call.plain, moved, own)
        self.roundings.append((plain, self.moved[-1]))

    def _run(
        self, function: Callable[..., Any], given: Any, change: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        given = map_tensors(lambda t: change(t) if has_memory(t) else t, given)
        inputs = tensors_of(given)
        for place in self.wanted.inputs:
            inputs[place].requires_grad_()
        with torch.set_grad_enabled(bool(self.wanted.inputs)):
            outputs = outputs_of(function(**given))
        return outputs + self.wanted.gradients(outputs, inputs)

    def check(self, results: Mapping[str, Tensor], gradients: Sequence[Tensor]) -> None:
        """Ids are the reference's away from ties, floats within the error budget.

        What is copied by ids is looked at elsewhere.
        """
        everything = [*results.values(), *gradients]
        expected = len(results) + len(self.wanted.inputs)
        require(expected == len(self.exact), "the reference has another number of outputs")
        if is_unpromised(self.arguments) and not self.call.compares:
            return
        names = [*results, *(f"gradient {place}" for place in range(len(gradients)))]
        while True:
            try:
                return self._judge(names, everything, len(results))
            except Wrong:
                if len(self.moved) == MOST_DRAWS:
                    raise
            # Inputs alone show neither a tie of tokens alike nor what a saturated gate loses.
            self._move(Rounding(self.generator))

    def _judge(self, names: Sequence[str], everything: Sequence[Tensor], num_results: int) -> None:
        torn = self._torn(everything[:num_results])
        for place, (name, got) in enumerate(zip(names, everything, strict=True)):
            # A product with 0 is 0 in one order of a gradient's terms, and NaN in another.
            is_ordered = place < num_results or are_finite(self.arguments)
            if got.dtype in DTYPES and name not in self.call.rows and is_ordered:
                self._check_floats(place, name, got, torn)

    def _torn(self, results: Sequence[Tensor]) -> Tensor | None:
        """The images, along dimension 0, whose ids a rounding moves; others are to be exact."""
        torn: Tensor | None = None
        for place, got in enumerate(results):
            exact = self.exact[place]
            kind = f"output {place}: {got.dtype}, not {exact.dtype}"
            require(got.dtype.is_floating_point or got.dtype == exact.dtype, kind)
            if got.dtype != torch.int64:
                continue
            require(got.shape == exact.shape, f"output {place}: not {list(exact.shape)}")
            rows = differing(got, exact)
            moves = torch.zeros_like(rows)
            if not self.call.compares:
                for pair in self.roundings:
                    for other in pair:
                        moves |= differing(other[place], exact)
            require(not bool((rows & ~moves).any()), f"output {place}: other ids, away from a tie")
            torn = moves if torn is None or torn.shape != moves.shape else torn | moves
        return torn

    def _check_floats(self, place: int, name: str, got: Tensor, torn: Tensor | None) -> None:
        exact, plain = self.exact[place].double(), self.plain[place]
        require(got.shape == exact.shape, f"{name}: {list(got.shape)}, not {list(exact.shape)}")
        got, numbers = got.detach().double(), exact.isfinite() & plain.isfinite()
        if torn is not None and torn.shape == got.shape[:1]:
            numbers &= ~torn.view(-1, *[1] * (got.dim() - 1))
        # Near the largest number of a dtype a kernel may round to inf what plain PyTorch does not.
        if not bool(numbers.any()) or largest(exact[numbers]) > torch.finfo(plain.dtype).max / 16:
            return
        moves = [(other[place].double(), exact) for other in self.moved]
        roundings = [(one[place].double(), other[place].double()) for one, other in self.roundings]
        # Of plain PyTorch, on these numbers and on others a rounding away, and between these.
        allowed = sum(
            max(largest((one - other)[numbers]) for one, other in pairs)
            for pairs in (moves, roundings)
        )
        floor = torch.finfo(plain.dtype).eps * float(exact[numbers].abs().max())
        tiny = torch.finfo(plain.dtype).tiny
        error, most = largest((got - exact)[numbers]), FACTOR * allowed + floor + tiny
        require(error <= most, f"{name}: off by {error:.3g}, of at most {most:.3g}")


def largest(errors: Tensor) -> float:
    """The largest size; what overflows a rounding away may do so here."""
    return float(errors.abs().nan_to_num(nan=math.inf, posinf=math.inf).max())


def are_finite(value: Any) -> bool:
    """Whether all numbers of tensors are."""
    tensors = (t for t in tensors_of(value) if t.dtype in DTYPES and has_memory(t))
    return all(bool(t.isfinite().all()) for t in tensors)


def is_unpromised(arguments: Mapping[str, Any]) -> bool:
    """Whether nothing is promised of the numbers but that ids are ids.

    Products of the arguments, squared, may be past the dtype that sums are in; or weights are not
    finite, which kernels multiply in another order than the oracle.
    """
    # A mass of 0, or of -eps, is divided by; random padding is drawn in each dtype.
    if arguments.get("eps", 1.0) <= 0 or arguments.get("padding") == "random":
        return True
    if not are_finite(arguments.get("weights")):
        return True
    floats = [t for t in tensors_of(arguments) if t.dtype in DTYPES and has_memory(t)]
    tensors = [t for t in floats if t.numel()]
    peaks = [float(wide(t).abs().nan_to_num(0.0, 0.0, 0.0).max()) for t in tensors]
    peaks += [abs(value) for value in arguments.values() if isinstance(value, float)]
    sums = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    bits = sum(math.log2(number) for number in peaks if 1 < number < math.inf)
    return 2 * bits > math.log2(torch.finfo(sums).max) - 16


def as_number(call: Call, value: Any) -> Any:
    """A number of NumPy, or in a tensor, as the dispatcher takes it; True for 1 too."""
    if call.is_direct and isinstance(value, bool):
        return int(value)
    is_tensor = isinstance(value, Tensor) and value.dim() == 0 and has_memory(value)
    if is_tensor or isinstance(value, np.generic):
        number = as_number(call, value.item())
        number = number.real if isinstance(number, complex) else number
        is_whole = isinstance(number, float) and number.is_integer()
        return int(number) if is_whole else number
    # Such a number is a float there.
    is_past = call.fake and isinstance(value, int) and abs(value) >= 2**63
    return float(value) if is_past else value


def differing(one: Tensor, other: Tensor) -> Tensor:
    """The images, along dimension 0, where two differ."""
    if one.shape != other.shape:
        return torch.ones(other.shape[:1] or (1,), dtype=torch.bool)
    unlike = one != other
    return unlike.flatten(1).any(dim=1) if unlike.dim() > 1 else unlike.reshape(-1)
