"""Runs code for a GPU without one, to find wrong calls in its CUDA branches.

Within `standing_in` torch.cuda has one H100, whose tensors are marked CPU tensors (see
`bench.rehearsal_tensors`). It finds missing names, wrong keywords, ops on tensors of two devices,
synchronizations where none is allowed, and work that a CUDA graph misses.

It cannot find: time and memory; what our GPU kernels compute, since every op of ours runs its CPU
kernel; races between streams or threads; and what torch.compile does on CUDA.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import _disable_current_modes

from bench.rehearsal_tensors import Devices, Gpu, Launch, memory_of, tensors_in
from bench.timing import poison
from ocvtp_kernels import backends, native

PROPERTIES = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    L2_cache_size=2**12,  # small, so that few copies of small inputs exceed it
    total_memory=80 * 2**30,
)
gpu: Any = Gpu(None)  # each `standing_in` has its own


class Stream:
    """A stream; its work runs immediately."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.device, self.priority, self.cuda_stream = device, priority, id(self)

    def wait_stream(self, other: Stream) -> None:
        if other in gpu.captured:
            gpu.captured.add(self)
            gpu.unjoined.discard(other)

    def wait_event(self, event: Event) -> None:
        if event.stream is not None:
            self.wait_stream(event.stream)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        gpu.refuse_in_capture()


class Event:
    """An event, timed by the host's clock."""

    def __init__(
        self,
        enable_timing: bool = False,
        blocking: bool = False,
        interprocess: bool = False,
        external: bool = False,
    ) -> None:
        self.timed, self.time = enable_timing, 0.0
        self.stream: Stream | None = None  # where it was recorded

    def record(self, stream: Stream | None = None) -> None:
        if self.timed:
            gpu.refuse_in_capture("a timing event")
        self.stream, self.time = stream or gpu.stream, time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        (stream or gpu.stream).wait_event(self)

    def synchronize(self) -> None:
        gpu.refuse_in_capture()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        if not (self.timed and end.timed and self.stream and end.stream):
            raise ValueError("Both events must be recorded, and made with enable_timing=True.")
        return (end.time - self.time) * 1e3


@contextmanager
def on_stream(stream: Stream | None) -> Iterator[None]:
    before, gpu.stream = gpu.stream, stream or gpu.stream
    try:
        yield
    finally:
        gpu.stream = before


class CUDAGraph:
    """The ops of a capture; a replay runs them again into the same memory."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.tape: list[Launch] = []

    def replay(self) -> None:
        with torch.no_grad(), _disable_current_modes():
            for func, args, kwargs, outputs in self.tape:
                for target, source in zip(outputs, tensors_in(func(*args, **kwargs)), strict=True):
                    if target.data_ptr() != source.data_ptr():
                        target.copy_(source)

    def pool(self) -> tuple[int, int]:
        return 0, 0

    def reset(self) -> None:
        self.tape = []


@contextmanager
def captured_in(
    cuda_graph: CUDAGraph, pool: Any = None, stream: Stream | None = None, **_: Any
) -> Iterator[None]:
    """As torch.cuda.graph; results of the capture are undone, as only a replay computes."""
    origin = stream or Stream()
    if origin is gpu.default:
        raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
    gpu.tape, gpu.captured = cuda_graph.tape, {origin}
    try:
        with on_stream(origin):
            yield
        if gpu.unjoined - {origin}:
            raise RuntimeError("capturing stream has unjoined work")
    finally:
        overwritten, gpu.tape = gpu.overwritten, None
        gpu.overwritten, gpu.captured, gpu.unjoined = [], set(), set()
        with torch.no_grad():
            for target, value in reversed(overwritten):
                target.copy_(value)
        for _func, args, kwargs, outputs in cuda_graph.tape:
            read = memory_of(tensors_in((args, kwargs)))
            poison([output for output in outputs if not read & memory_of([output])])


class Generator(torch.Generator):
    """A CPU generator that reports the device it was made for."""

    _device: torch.device

    def __new__(cls, device: Any = "cpu") -> Generator:
        make: Any = super().__new__
        made: Generator = make(cls, "cpu")
        made._device = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._device


def set_sync_debug_mode(debug_mode: str | int) -> None:
    modes: dict[str | int, int] = {"default": 0, "warn": 1, "error": 2}
    gpu.sync_mode = modes.get(debug_mode, debug_mode)


def always(value: object) -> Callable[..., Any]:
    return lambda *_, **__: value


STAND_INS: dict[str, Any] = {
    **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), always(True)),
    **dict.fromkeys(("current_device", "memory_allocated", "max_memory_allocated"), always(0)),
    **dict.fromkeys(("memory_reserved", "max_memory_reserved"), always(0)),
    **dict.fromkeys(("reset_peak_memory_stats", "empty_cache", "set_device"), always(None)),
    "device_count": always(1),
    "default_generators": (torch.default_generator,),
    "manual_seed": torch.manual_seed,
    "device": always(nullcontext()),
    "get_device_name": always(PROPERTIES.name),
    "get_device_capability": always((PROPERTIES.major, PROPERTIES.minor)),
    "get_device_properties": always(PROPERTIES),
    "mem_get_info": always((PROPERTIES.total_memory, PROPERTIES.total_memory)),
    "synchronize": lambda *_, **__: gpu.refuse_in_capture(),
    "set_sync_debug_mode": set_sync_debug_mode,
    "get_sync_debug_mode": lambda: gpu.sync_mode,
    "current_stream": lambda *_, **__: gpu.stream,
    "default_stream": lambda *_, **__: gpu.default,
    "stream": on_stream,
    "Stream": Stream,
    "Event": Event,
    "CUDAGraph": CUDAGraph,
    "graph": captured_in,
    "is_current_stream_capturing": lambda: gpu.tape is not None,
    "cudart": always(SimpleNamespace(cudaProfilerStart=always(0), cudaProfilerStop=always(0))),
    "nvtx": SimpleNamespace(range_push=always(0), range_pop=always(0), mark=always(None)),
}

CACHED = type(cache(always))


def called_as(name: str, value: Any) -> Any:
    """A stand-in with the signature of the torch.cuda function of this name."""
    if isinstance(value, type) or not callable(value):
        return value
    signature = inspect.signature(getattr(torch.cuda, name))

    def call(*args: Any, **kwargs: Any) -> Any:
        signature.bind(*args, **kwargs)
        return value(*args, **kwargs)

    return call


@contextmanager
def standing_in() -> Iterator[None]:
    """Within the block torch.cuda has a GPU, as the module's docstring says."""
    device = Gpu(Stream())
    devices = Devices(device)
    choose, why_not = backends.select_kernel, native.missing_reason

    def choose_for_the_cpu(op: str, arguments: Sequence[Any], gradient: bool = False) -> Any:
        # An op's own code is called below the modes, where every tensor says that it is on the CPU.
        with devices:
            run = choose(op, arguments, gradient)
        kernels = backends._kernels[op]
        plain = [kernels[name].run for name in ("cpu", "reference") if name in kernels]
        return run if run in plain else plain[0]

    def why_not_here(device_type: str) -> str | None:
        return None if device_type == "cuda" else why_not(device_type)

    with ExitStack() as stack:
        for module, name, value in (
            *((torch.cuda, name, called_as(name, value)) for name, value in STAND_INS.items()),
            (sys.modules[__name__], "gpu", device),
            (torch, "Generator", Generator),
            (torch.Tensor, "pin_memory", torch.Tensor.clone),
            (backends, "select_kernel", choose_for_the_cpu),
            (native, "missing_reason", why_not_here),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        _forget()
        stack.callback(_forget)
        stack.enter_context(device)
        stack.enter_context(devices)
        yield


def _forget() -> None:
    """Clears cached answers about whether there is a GPU, and which."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("ocvtp_kernels", "transformers.utils.import_utils")):
            for value in list(vars(module).values()):
                if isinstance(value, CACHED):
                    value.cache_clear()
