"""A call of a public function, and what is known of it without running it."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ocvtp_kernels import use_backend
from ocvtp_kernels.backends import interpreting
from tests.cases import running
from tests.fuzz.draw import Draw, tensors_of


@dataclass
class Call:
    """One call, and what is known of its result.

    Attributes:
        function: of ``arguments``, by name.
        names: what an error may call an argument.
        oracle: the same in plain PyTorch, of arguments in float64.
        plain: the same in plain PyTorch, of the arguments as they are.
        fake: whether it runs on tensors without values.
        rows: by output, the argument whose rows it copies, those of the output "ids".
        kept: whether the output "ids" is ascending and distinct.
        compares: whether it only compares numbers, so that ids are the oracle's at ties too.
        is_padded: whether ids may end in -1.
        repeats_ids: whether an id may come twice.
        sizes: numbers that fix the size of something and have no upper bound.
        remembered: arguments that are results of another call, which kernels may compute again.
        ignores_autocast: whether its numbers are the same under autocast.
        has_gradients: whether results may be differentiated.
        is_direct: whether the dispatcher is called by no function of ours.
        output_names: of the outputs; those of the result's fields where it has names.
    """

    function: Callable[..., Any]
    arguments: dict[str, Any]
    names: frozenset[str]
    oracle: Callable[..., Any]
    plain: Callable[..., Any]
    fake: bool = False
    rows: Mapping[str, str] = field(default_factory=dict)
    kept: bool = False
    compares: bool = False
    is_padded: bool = False
    repeats_ids: bool = False
    sizes: frozenset[str] = frozenset()
    remembered: frozenset[str] = frozenset()
    ignores_autocast: bool = False
    has_gradients: bool = True
    is_direct: bool = False
    output_names: tuple[str, ...] = ()

    def named(self, result: Any) -> dict[str, Tensor]:
        """The outputs by name."""
        fields = getattr(result, "_fields", None)
        if fields and not self.output_names:
            given = zip(fields, result, strict=True)
            return {name: value for name, value in given if isinstance(value, Tensor)}
        tensors = tensors_of(result)
        names = [name or f"output {i}" for i, name in enumerate(self.output_names)]
        names += [f"output {i}" for i in range(len(names), len(tensors))]
        return dict(zip(names, tensors, strict=False))


@dataclass(frozen=True)
class Context:
    """What holds around a call."""

    backend: str  # one of `tests.cases.CPU_BACKENDS`, "default" or "triton"
    grad: str  # "grad", "no_grad" or "inference_mode"
    autocast: torch.dtype | None

    @classmethod
    def of(cls, draw: Draw, call: Call) -> Context:
        backends = {"default": 50, "plain": 25, "reference": 15, "portable": 5, "avx2": 5}
        # Triton's interpreter takes seconds for what is not small.
        elements = sum(tensor.numel() for tensor in tensors_of(call.arguments))
        steps = max((n for n in call.arguments.values() if isinstance(n, int)), default=0)
        # Of results of another call they read others than the CPU does.
        is_small = elements < 5000 and steps < 20 and not call.remembered
        if call.fake and is_small and draw.chance(0.02) and interpreting():
            backends = {"triton": 1}
        modes = {"grad": 60, "no_grad": 25, "inference_mode": 15}
        autocast = draw.choice((torch.bfloat16, torch.float16)) if draw.chance(0.06) else None
        return cls(draw.weighted(backends), draw.weighted(modes), autocast)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within the block it holds."""
        with ExitStack() as stack:
            if self.backend == "triton":
                from ocvtp_kernels.triton_common.launch import watch
                from tests.interpreted import run_quickly

                stack.enter_context(use_backend("triton"))
                stack.enter_context(watch(run_quickly))
            elif self.backend != "default":
                stack.enter_context(running(self.backend))
            if self.autocast is not None:
                stack.enter_context(torch.autocast("cpu", self.autocast))
            mode = getattr(torch, "enable_grad" if self.grad == "grad" else self.grad)
            stack.enter_context(mode())
            yield


# torch's own words where an argument is of no type that the op's schema takes.
SCHEMA = (
    r"ocvtp\w*::\w+\(\) Expected a value of type '[^']+' for argument '(\w+)' but instead found ",
    r"ocvtp\w*::\w+\(\) is missing value for argument '(\w+)'",
    r"ocvtp\w*::\w+\(\) expected at most \d+ argument\(s\) but received ",
    r"Unknown keyword argument '(\w+)' for operator 'ocvtp",
)
# Python's, where there is no such argument or one is missing.
SIGNATURE = (
    r"[\w.<>]+\(\) got an unexpected keyword argument '(\w+)'",
    r"[\w.<>]+\(\) missing \d+ required (?:positional|keyword-only) arguments?: '(\w+)'",
    r"[\w.<>]+\(\) takes (?:from \d+ to )?\d+ positional arguments? but ",
    r"[\w.<>]+\(\) got multiple values for argument '(\w+)'",
    r"too many positional arguments$",
    r"missing a required argument: '(\w+)'",
    r"got an unexpected keyword argument '(\w+)'",
)


def names_an_argument(error: BaseException, names: frozenset[str]) -> bool:
    """Whether it is an error that the docstrings promise."""
    said = str(error)
    frames = traceback.extract_tb(error.__traceback__)
    if frames[-1].filename.endswith("torch/_tensor_str.py"):
        return True  # autocast keeps torch from printing what it refuses
    if type(error) in (RuntimeError, TypeError) and any(re.match(one, said) for one in SCHEMA):
        return True
    if type(error) is TypeError and any(re.match(one, said) for one in SIGNATURE):
        return True
    if type(error) not in (ValueError, TypeError):
        return False
    named = re.match(r"(\w+)(?:\[\d+\])?((?:, \w+)*): .", said)
    return bool(named) and {named[1], *named[2].split(", ")[1:]} <= names


def is_refused_by_its_type(error: BaseException, arguments: Any) -> bool:
    """Whether a jagged tensor, a subclass with a dispatch of its own, refused to go to the op."""
    jagged = any(tensor.layout is torch.jagged for tensor in tensors_of(arguments))
    return type(error) is NotImplementedError and jagged


def described(value: Any) -> str:
    """An argument in a line."""
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        if value.is_nested or value.layout is not torch.strided:
            return f"{kind} {'nested' if value.is_nested else value.layout}"
        said = [f"{kind}{list(value.shape)}"]
        said += [] if value.is_contiguous() else [f"stride {list(value.stride())}"]
        said += [] if value.device.type == "cpu" else [str(value.device)]
        for kind in ("requires_grad", "is_inference", "is_neg", "is_quantized"):
            found = getattr(value, kind)
            said += [kind] if found is True or (callable(found) and found()) else []
        return " ".join(said)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(described, value))}]"
    return repr(value)
