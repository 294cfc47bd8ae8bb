"""The GPU that is played on the CPU: its tensors, its waits, its graphs and streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.ops import case_of
from bench.rehearsal import standing_in
from bench.timing import StaleReplay, measure, no_waiting, side_stream
from bench.workloads import Workload
from ocvtp_kernels import backends, use_backend

GPU = torch.device("cuda")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU is better")


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    with standing_in(), side_stream(GPU):
        yield GPU


def capture(call: Callable[[], Any], **given: Any) -> tuple[Any, Any]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, **given):
        result = call()
    return graph, result


def test_tensors_are_where_they_are_made_and_sent(gpu: torch.device) -> None:
    host, there = torch.ones(2, 3), torch.ones(2, 3, device=gpu)
    assert [t.device.type for t in (host, host + 1, there.cpu(), there.to("cpu"))] == ["cpu"] * 4
    generator = torch.Generator(gpu).manual_seed(1)
    with gpu:
        module = torch.nn.Linear(3, 3)
    made = [
        *(there[0], there + 1, there.new_zeros(1), torch.zeros_like(there), host.cuda()),
        *(host.to("cuda"), host.to(there), torch.as_tensor(host, device=gpu), module(there)),
        *(torch.nn.Linear(3, 3).to(device=gpu, dtype=torch.float64).weight, module.weight.data),
        torch.randn(2, generator=generator, device=generator.device),
        *torch.autograd.grad(module(there).sum(), [module.weight]),
    ]
    assert [t.device for t in made if not t.is_cuda] == []
    with torch.random.fork_rng(devices=[there.device]):
        torch.cuda.manual_seed(3)
    host.cuda().zero_()
    there.cpu().zero_()
    assert host.all() and there.all() and not host.is_cuda


def test_two_devices_in_one_op_are_refused(gpu: torch.device) -> None:
    host, there = torch.ones(2, 3), torch.ones(2, 3, device=gpu)
    stack = partial(torch.stack, [host, there])
    for wrong in (lambda: host + there, stack, lambda: host[there > 0]):
        with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
            wrong()
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(2, generator=torch.Generator(), device=gpu)
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    assert (there * torch.tensor(2.0)).is_cuda


WAITS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "item": lambda there, _: there.sum().item(),
    "bool": lambda there, _: bool(there.any()),
    "list": lambda there, _: there.tolist(),
    "nonzero": lambda there, _: there.nonzero(),
    "mask": lambda there, _: there[there > 0],
    "equal": lambda there, _: torch.equal(there, there),
    "cpu": lambda there, _: there.cpu(),
    "to cpu": lambda there, _: there.to("cpu", torch.float64),
    "cuda": lambda _, host: host.cuda(),
    "copy": lambda there, host: there.copy_(host),
    "tensor": lambda there, _: torch.tensor([1.0], device=there.device),
    "index": lambda there, _: there[torch.tensor([0])],
}


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_for_the_device_raises(gpu: torch.device, name: str) -> None:
    there, host = torch.ones(2, device=gpu), torch.ones(2)
    WAITS[name](there, host)
    with pytest.raises(RuntimeError, match="synchronizing"), no_waiting():
        WAITS[name](there, host)
    with pytest.raises(RuntimeError, match="capturing"):
        capture(lambda: WAITS[name](there, host))
    WAITS[name](there, host)


def test_what_does_not_wait_does_not_raise(gpu: torch.device) -> None:
    there, host = torch.ones(2, device=gpu), torch.ones(2)
    with no_waiting():
        there[there > 0] = 3.0
        there.copy_(host, non_blocking=True)
        host.to(gpu, non_blocking=True)
        torch.full((2,), 1.0, device=gpu) @ there
        assert host.sum().item() == 2.0 and torch.equal(host, host) and host[host > 0].tolist()
        torch.cuda.synchronize()


def test_a_graph_replays_on_new_inputs(gpu: torch.device) -> None:
    x, total = torch.arange(6.0, device=gpu).view(2, 3), torch.zeros(3, device=gpu)

    def call() -> Tensor:
        total.add_(x.sum(0))
        return torch.ones(2, 3, device=gpu).mul_(x)[1]

    graph, row = capture(call)
    # In a capture nothing is computed, and what it makes has no values yet.
    assert row.isnan().all() and not total.any()
    graph.replay()
    assert torch.equal(row, x[1]) and torch.equal(total, x.sum(0))
    x.neg_()
    graph.replay()
    assert torch.equal(row, x[1]) and not total.any()


def test_a_graph_that_does_not_do_its_work_is_stale(gpu: torch.device) -> None:
    x = torch.randn(8, 8, device=gpu)
    known: list[Tensor] = []

    def lazy() -> Tensor:
        known.extend([] if known else [x @ x])
        return known[0]

    timings = measure(
        {"graph": lambda: x @ x, "events": lambda: x @ x, "waits": lambda: x[x > 0]},
        device=gpu,
        capture=["graph", "waits"],
        rounds=(2, 2),
    )
    assert [one.method for one in timings.values()] == ["graph", "events", "events"]
    assert "synchronizing" in timings["waits"].note
    with pytest.raises(StaleReplay, match="anew"):
        measure({"lazy": lazy}, device=gpu, capture=["lazy"])


def test_what_a_capture_refuses(gpu: torch.device) -> None:
    x = torch.ones(2, device=gpu)
    with pytest.raises(RuntimeError, match="non-default stream"):
        capture(lambda: x + 1, stream=torch.cuda.default_stream())
    for wrong in (torch.cuda.synchronize, torch.cuda.Event(enable_timing=True).record):
        with pytest.raises(RuntimeError, match="capturing"):
            capture(wrong)
    assert not torch.cuda.is_current_stream_capturing()


def test_work_on_a_side_stream_is_in_the_graph_if_joined(gpu: torch.device) -> None:
    x, other = torch.ones(2, device=gpu), torch.cuda.Stream()

    def call(waits: bool = True, joins: bool = True) -> Tensor:
        if waits:
            other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            result = x + 1
        if joins:
            torch.cuda.current_stream().wait_stream(other)
        return result

    with pytest.raises(RuntimeError, match="unjoined"):
        capture(lambda: call(joins=False))
    graph, inside = capture(call)
    beside, outside = capture(lambda: call(waits=False, joins=False))
    outside.zero_()
    x.fill_(5.0)
    graph.replay()
    beside.replay()
    assert inside.tolist() == [6.0, 6.0] and not outside.any()


def test_events_tell_the_time_if_asked_to(gpu: torch.device) -> None:
    first, last, silent = (torch.cuda.Event(enable_timing=timed) for timed in (True, True, False))
    with pytest.raises(ValueError, match="recorded"):
        first.elapsed_time(last)
    for event in (first, silent, last):
        event.record()
    assert first.elapsed_time(last) > 0
    with pytest.raises(ValueError, match="enable_timing"):
        first.elapsed_time(silent)


def test_a_wrong_keyword_is_refused(gpu: torch.device) -> None:
    for wrong in (
        lambda: torch.cuda.graph(torch.cuda.CUDAGraph(), streams=None),
        lambda: torch.cuda.get_device_properties(devices=0),
        lambda: torch.cuda.synchronize(stream=None),
        lambda: torch.cuda.Event(timing=True),
    ):
        with pytest.raises(TypeError):
            wrong()
    torch.cuda.synchronize(device=gpu)


@pytest.mark.parametrize("backend", backends.GPU_KERNELS)
def test_a_gpu_backend_is_chosen_and_its_op_computes(gpu: torch.device, backend: str) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    case = case_of("gru_cell", Workload(2, 40, 7, 7, 24, 16), gpu)
    inputs = case.inputs(1)
    assert backends.select_backend("gru_cell", "cuda") == "triton"
    with use_backend(backend):
        expected = case.call(*inputs)
        graph, again = capture(lambda: case.call(*inputs))
        assert backends.unsupported_by_call("gru_cell", backend, inputs) is None
    wide = [tensor.double() for tensor in inputs]
    torch.testing.assert_close(expected, case.reference(*wide).float())
    with pytest.raises(backends.BackendUnavailable, match="not float64"), use_backend(backend):
        case.call(*wide)
    inputs[0].neg_()
    graph.replay()
    assert again.is_cuda and torch.equal(again, case.call(*inputs))


def facts() -> list[Any]:
    cuda = backends.unsupported_reason("prune", "cuda", "cuda"), torch.cuda.is_available()
    cuda = *cuda, torch.ones(1).is_cuda, dict(vars(torch.cuda))
    return [*cuda, torch.Generator, backends.select_kernel]


@pytest.mark.parametrize("error", [None, KeyError()])
def test_everything_is_as_before_afterwards(error: Exception | None) -> None:
    before = facts()
    with suppress(KeyError), standing_in():
        assert facts()[:2] == [None, True]
        assert torch.cuda.get_device_capability() == (9, 0) and torch.ones(1).cuda().is_cuda
        if error is not None:
            raise error
    assert facts() == before
