"""Timing: variants interleaved, median and spread; CUDA graphs over cold inputs where possible."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from bench.results import Method, Times

Call = Callable[[], object]

FILLED_BYTES = 2**28  # of a CPU's caches, more than they hold
# A replay that differs from the eager call by more than this has not done the work.
REPLAY_TOLERANCE = 1e-2


class StaleReplay(RuntimeError):
    """Replaying a variant's CUDA graph does not recompute its outputs."""

    def __init__(self, variant: str) -> None:
        super().__init__("its CUDA graph does not compute the outputs anew")
        self.variant = variant


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """On CUDA a stream of its own for the whole run.

    A backward pass runs on the stream of its forward pass, and the default stream cannot be
    captured.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        yield


def filler_of_caches(device: torch.device) -> Call:
    """Work that leaves nothing of a call's tensors in the caches."""
    elements = FILLED_BYTES // 4
    if device.type == "cuda":
        elements = 3 * torch.cuda.get_device_properties(device).L2_cache_size // 4
    other = torch.zeros(elements, device=device)
    return lambda: other.add_(1)


def copies_for_cold_cache(num_bytes: int, device: torch.device) -> int:
    """How many clones of ``num_bytes`` of inputs are more than three times the L2 cache."""
    if device.type != "cuda":
        return 2
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return 3 * cache // max(1, num_bytes) + 2


class Sample(NamedTuple):
    """What is clocked of a variant.

    Attributes:
        take: runs it once and returns seconds per call.
        method: how it is clocked.
        note: why not by graph.
    """

    take: Callable[[], float]
    method: Method
    note: str = ""


def sample_of(
    name: str,
    call: Call,
    *,
    device: torch.device,
    calls: int = 1,
    capture: bool = False,
    cpu_time: bool = False,
    before: Call | None = None,
) -> Sample:
    """A sample of ``calls`` calls, after as many to warm up; arguments as in `measure`.

    Raises:
        StaleReplay: a graph's replay left outputs poisoned, or unlike those of the eager call.
    """
    is_cuda = device.type == "cuda"
    method: Method = "events" if is_cuda else "cpu" if cpu_time else "host"
    note = ""
    for _ in range(calls + 1):
        call()
    run = _repeated(call, calls)
    if is_cuda and capture:
        graph = _capture(name, call, calls)
        if isinstance(graph, str):
            note = graph
        else:
            run, method = graph, "graph"
    clock = _event_clock if is_cuda else _cpu_clock if cpu_time else _host_clock

    def take() -> float:
        if before is not None:
            before()
        return clock(run) / calls

    return Sample(take, method, note)


def measure(
    variants: Mapping[str, Call],
    *,
    device: torch.device | None = None,
    calls: int = 1,
    capture: Collection[str] = (),
    slow: Collection[str] = (),
    seconds: float = 2.0,
    rounds: tuple[int, int] = (5, 40),
    cpu_time: bool = False,
    before: Call | None = None,
    elsewhere: Mapping[str, Sample] | None = None,
) -> dict[str, Times]:
    """Times variants interleaved, round by round, so that drift of the machine affects all alike.

    Args:
        variants: calls by name.
        device: CPU if None.
        calls: calls in one sample, such as one for each copy of the inputs.
        capture: names that may go into a CUDA graph; the others, and those that refuse, are timed
            by events around the calls, which counts the host where it is the slower.
        slow: names whose sample is one call, as each takes tens of milliseconds.
        seconds: about how long all of it may take.
        rounds: minimum and maximum.
        cpu_time: CPU time of this process, which other processes do not lengthen.
        before: runs before every sample, outside of the clock.
        elsewhere: samples of another process, which take turns with these.

    Raises:
        StaleReplay: a graph's replay left outputs poisoned, or unlike those of the eager call.
    """
    device = torch.device("cpu") if device is None else device
    counts = {name: 1 if name in slow else calls for name in variants}
    samples = dict(elsewhere or {})
    for name, call in variants.items():
        samples[name] = sample_of(
            name,
            call,
            device=device,
            calls=counts[name],
            capture=name in capture,
            cpu_time=cpu_time,
            before=before,
        )
    start = time.perf_counter()
    for sample in samples.values():
        sample.take()
    once = time.perf_counter() - start
    count = int(min(max(seconds / max(once, 1e-9), rounds[0]), rounds[1]))
    taken: dict[str, list[float]] = {name: [] for name in samples}
    order = list(samples)
    for turn in range(count):
        # The first of a round finds an idle device, so the order rotates.
        first = turn % len(order)
        for name in order[first:] + order[:first]:
            taken[name].append(samples[name].take())
    return {name: summary(taken[name], *sample[1:]) for name, sample in samples.items()}


def summary(values: list[float], method: Method, note: str = "") -> Times:
    """Median and the 20th and 80th percentiles."""
    quantiles = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
    median, p20, p80 = torch.tensor(values, dtype=torch.float64).quantile(quantiles).tolist()
    return Times(median, p20, p80, len(values), method, note)


def _repeated(call: Call, calls: int) -> Call:
    def run() -> None:
        for _ in range(calls):
            call()

    return run


def _host_clock(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _cpu_clock(call: Call) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _event_clock(call: Call) -> float:
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    call()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1e3


def tensors_of(outputs: object) -> list[Tensor]:
    """The tensors among a call's outputs."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, (list, tuple)):
        return list(chain.from_iterable(tensors_of(output) for output in outputs))
    return []


def poison(outputs: object) -> None:
    """Overwrites outputs with NaN or -1, so that returning them again is detected."""
    # Outputs of inference mode may be changed within it alone.
    with torch.inference_mode():
        for tensor in tensors_of(outputs):
            tensor.detach().fill_(torch.nan if tensor.is_floating_point() else -1)


def _capture(name: str, call: Call, calls: int) -> Call | str:
    """A checked CUDA graph of ``calls`` calls, or the reason why there is none."""
    expected: object = None
    captured: object = None
    try:
        # A failed capture leaves the allocator inconsistent, so a dry run comes first.
        with no_waiting():
            for _ in range(calls):
                expected = call()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            for _ in range(calls):
                captured = call()
    except RuntimeError as error:
        torch.cuda.synchronize()
        return first_line(error)
    # A kernel launched on another stream is not in the graph: its outputs would stay poisoned.
    poison(captured)
    graph.replay()
    torch.cuda.synchronize()
    pairs = zip(tensors_of(captured), tensors_of(expected), strict=True)
    if not all(_alike(again, first) for again, first in pairs):
        raise StaleReplay(name)
    return graph.replay


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within the block a synchronization with the GPU raises RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def release(device: torch.device) -> None:
    """Frees cached memory; CUDA graphs hold theirs until they are collected."""
    gc.collect()
    if device.type == "cuda":
        # It fails after a capture that failed.
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def first_line(error: Exception) -> str:
    """What an error says, in one line of at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _alike(again: Tensor, first: Tensor) -> bool:
    if not first.is_floating_point():
        return torch.equal(again, first)
    error = (again.double() - first.double()).norm()
    return bool(error <= REPLAY_TOLERANCE * first.double().norm())
