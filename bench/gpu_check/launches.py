"""The Triton binaries that the check launches on a GPU, found without one.

No kernel runs: launches are recorded, and their outputs hold zeros. The tests run unchanged under
`bench.rehearsal`; the bench runs at real sizes on meta tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

from bench.cases import outputs_of
from bench.compiled.binaries import StandIn
from bench.gpu_check.binaries import ALIGNMENT, Binary, write, written
from bench.ops import case_of
from ocvtp_kernels import backends
from ocvtp_kernels.triton_common.archs import ARCHS, pretend

EMPTIES = ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (Tensor, "new_empty"))


class Recorder:
    """Collects each binary once in `found`, with the stages that launch it."""

    def __init__(self) -> None:
        self.stage = ""
        self.found: dict[tuple[Any, ...], Binary] = {}

    def note(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        """Records a launch, in place of ``JITFunction.run``."""
        given = {**dict(zip(kernel.arg_names, args, strict=False)), **kwargs}
        arguments = {name: given.pop(name) for name in kernel.arg_names if name in given}
        name = f"{kernel.fn.__module__}:{kernel.fn.__name__}"
        types = [
            tuple(written(value)) if isinstance(value, Tensor) else _type_of(argument, value)
            for argument, value in arguments.items()
        ]
        key = name, *types, *sorted(given.items())
        if key not in self.found:
            stored = {argument: written(value) for argument, value in arguments.items()}
            self.found[key] = Binary(name, stored, given, [])
        if self.stage not in (stages := self.found[key].stages):
            stages.append(self.stage)


def _type_of(name: str, value: Any) -> Any:
    """The class of numbers that Triton compiles together; a constant itself."""
    if name.isupper() or isinstance(value, bool) or not isinstance(value, int):
        return (type(value), value) if not isinstance(value, float) or name.isupper() else float
    return value == 1, value % ALIGNMENT == 0, -(2**31) <= value < 2**31


@contextmanager
def zeros() -> Iterator[None]:
    """Within the block new memory holds zeros, which are valid ids and values."""

    def zeroed(empty: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: empty(*args, **kwargs).zero_()

    with ExitStack() as stack:
        for owner, name in EMPTIES:
            stack.enter_context(mock.patch.object(owner, name, zeroed(getattr(owner, name))))
        yield


def _triton_of(op: str, arguments: tuple[Any, ...]) -> Callable[..., Any] | None:
    """The op's Triton kernel if a GPU would run it on these arguments.

    Also where the "cuda" backend is forced.
    """
    kernel = backends._kernels.get(op, {}).get("triton")
    dtypes = {value.dtype for value in arguments if isinstance(value, Tensor)}
    if kernel is None or backends.override() == "reference" or torch.float64 in dtypes:
        return None
    unsupported = kernel.unsupported and kernel.unsupported(*arguments)
    return kernel.run if unsupported is None else None


def _choose(op: str, arguments: Any, gradient: bool = False) -> Callable[..., Any]:
    """`backends.select_kernel` of a GPU, for tensors on the CPU."""
    kernels = backends._kernels[op]
    return _triton_of(op, arguments) or kernels.get("cpu", kernels["reference"]).run


class _OnMeta(TorchDispatchMode):
    """Our ops on meta tensors run their Triton launchers."""

    def __torch_dispatch__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "ocvtp":
            # The dispatcher leaves out those that equal their defaults.
            rest = func._schema.arguments[len(args) :]
            given = (*args, *(kwargs.get(one.name, one.default_value) for one in rest))
            run = _triton_of(func._schema.name.removeprefix("ocvtp::"), given)
            if run is not None:
                return run(*given)
        return func(*args, **kwargs)


class _Undrawn(TorchFunctionMode):
    """Drops generators from calls, as meta tensors have none."""

    def __torch_function__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = {name: value for name, value in (kwargs or {}).items() if name != "generator"}
        return func(*args, **kwargs)


@contextmanager
def recording(arch: int) -> Iterator[Recorder]:
    """Within the block Triton's kernels are recorded for ``arch`` instead of run."""
    recorder = Recorder()

    # A function, unlike a bound method, is given the kernel.
    note = mock.patch.object(
        JITFunction, "run", lambda *args, **given: recorder.note(*args, **given)
    )
    choose = mock.patch.object(backends, "select_kernel", _choose)
    triton.runtime.driver.set_active(StandIn(arch))
    with pretend(ARCHS[arch]), note, choose:
        yield recorder


class _AnyGenerator(torch.Generator):
    """A generator that accepts any device."""

    def __new__(cls, *_: Any) -> _AnyGenerator:
        return super().__new__(cls)


@contextmanager
def without_memory() -> Iterator[torch.device]:
    """Within the block the bench's own code runs on the meta device."""
    generator = mock.patch.object(torch, "Generator", _AnyGenerator)
    autocast = mock.patch.object(torch, "is_autocast_enabled", lambda _: False)
    with generator, autocast, _Undrawn(), _OnMeta():
        yield torch.device("meta")


def prune() -> None:
    """Launches of `prune` in smoke, prune, compile and profile."""
    from bench.gpu_check.one_prune import SIZES
    from bench.gpu_check.smoke import LOADS
    from bench.workloads import CUDA_SHORT, square

    profiled = [square(*sizes, "bfloat16") for sizes in SIZES]
    with without_memory() as device:
        for load in dict.fromkeys((*LOADS, *CUDA_SHORT.prune, *CUDA_SHORT.compiled, *profiled)):
            case = case_of("prune", load, device)
            case.call(*case.inputs(0))


def other_kernels() -> None:
    """Launches of other ops in compile, beside third-party kernels."""
    from bench.gpu_check.stages import OTHERS
    from bench.jobs import jobs
    from bench.workloads import CUDA_SHORT

    for job in jobs("ops", CUDA_SHORT, OTHERS):
        with without_memory() as device:
            case = case_of(job.op, job.workload, device)
            inputs = case.inputs(0)
            if job.direction == "forward":
                case.call(*inputs)
            else:
                leaves = [each.requires_grad_() for each in inputs]
                outputs = outputs_of(case.call(*leaves))
                torch.autograd.grad(outputs, leaves, [torch.empty_like(one) for one in outputs])


def models() -> None:
    """Launches of e2e."""
    from bench.models.calls import pruned_view
    from bench.models.llava import Vlm
    from bench.models.plan import plan

    with without_memory() as device, torch.no_grad():
        for job in plan("cuda", short=True):
            vlm = Vlm(job.shape, device)
            for choice in job.choices:
                if choice.selector == "unpruned":
                    continue
                if choice.selector == "ocvtp":
                    case = case_of("prune", vlm.workload(choice.budget), device)
                    case.call(*case.inputs(0))
                for timed in (False, True):
                    view, _, _ = pruned_view(vlm, choice, job.batch, timed)
                    pixels, others = vlm.pixels(job.batch, 0), vlm.image_arguments(job.batch)
                    view.model.get_image_features(pixels, **others)


def selectors() -> None:
    """Launches of selectors, of the loops alone too."""
    from bench.selectors import inputs
    from bench.selectors.run import keep

    for job in inputs.plan("cuda", short=True):
        drawn = inputs.draw(job, 0, torch.device("cpu"))
        with without_memory() as device, torch.no_grad():
            given = inputs.map_tensors(partial(Tensor.to, device=device), drawn)
            for name in inputs.NAMES:
                keep(inputs.selector_of(name, job, device), given, job.budget)
            if job.batch == 1:
                # The published loop reads its pivots on the host.
                with mock.patch.object(Tensor, "tolist", lambda _: []):
                    for name in inputs.PUBLISHED:
                        inputs.loops_of(name, given, job.budget)[0]()


def every_op() -> None:
    """Launches of sanitizer."""
    from bench.gpu_check.every_op import calls
    from tests.ops.cases import ARGUMENTS, op

    for name, dtype, batch in calls():
        arguments = ARGUMENTS[name](batch=batch, dtype=dtype)
        with zeros():
            op(name)(*arguments)


STAGES: dict[str, Callable[[], None]] = {
    "prune": prune,
    "compile": other_kernels,
    "e2e": models,
    "selectors": selectors,
    "sanitizer": every_op,
}


def main() -> int:
    """``python -m bench.gpu_check.launches ARCH FILE``: the list of all stages but the tests."""
    arch, path = int(sys.argv[1]), Path(sys.argv[2])
    with recording(arch) as recorder:
        for recorder.stage, launch in STAGES.items():
            launch()
    write(path, arch, recorder.found.values())
    return 0


if __name__ == "__main__":
    sys.exit(main())
