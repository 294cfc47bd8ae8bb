"""What every op promises on a GPU: the CPU's answer, no wait for the device, graph replay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ocvtp_kernels import backends
from tests.cases import outputs, to_device
from tests.ops.cases import ARGUMENTS, op
from tests.ops.test_every_op import map_tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
EVERY_OP = pytest.mark.parametrize("name", ARGUMENTS)
EVERY_BACKEND = pytest.mark.parametrize("backend", ["chosen", "triton", "cuda"])


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def on_gpu(name: str, **changes: Any) -> Any:
    return map_tensors(lambda t: to_device(t, "cuda"), ARGUMENTS[name](**changes))


def force(monkeypatch: pytest.MonkeyPatch, backend: str, name: str, arguments: Any) -> None:
    """For this test the op runs on this backend; skips with the reason where it cannot."""
    if backend == "chosen":
        return
    reason = backends.unsupported_by_call(name, backend, arguments)
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setattr(backends, "PREFERENCE", (backend,))


@EVERY_OP
@EVERY_BACKEND
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_small_cases_give_the_cpus_answer(
    monkeypatch: pytest.MonkeyPatch, name: str, backend: str, batch: int, dtype: torch.dtype
) -> None:
    expected = outputs(op(name)(*ARGUMENTS[name](batch=batch, dtype=torch.float64)))
    arguments = on_gpu(name, batch=batch, dtype=dtype)
    force(monkeypatch, backend, name, arguments)
    got = outputs(op(name)(*arguments))
    for a, b in zip(got, expected, strict=True):
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {}
        torch.testing.assert_close(a.cpu(), b.to(a.dtype), **tolerance)


@EVERY_OP
@EVERY_BACKEND
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_never_waits_for_the_device(
    monkeypatch: pytest.MonkeyPatch, name: str, backend: str, dtype: torch.dtype
) -> None:
    arguments = on_gpu(name, dtype=dtype)
    force(monkeypatch, backend, name, arguments)
    op(name)(*arguments)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        op(name)(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@EVERY_OP
@EVERY_BACKEND
def test_a_captured_call_replays_on_new_inputs(
    monkeypatch: pytest.MonkeyPatch, name: str, backend: str
) -> None:
    arguments = on_gpu(name)
    force(monkeypatch, backend, name, arguments)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            op(name)(*arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = outputs(op(name)(*arguments))
    # The second image takes the first one's place, and nothing of the first answer is left.
    for tensor in arguments:
        # What is expanded over the images is the same for both.
        if isinstance(tensor, Tensor) and tensor.dim() > 2 and 0 not in tensor.stride():
            tensor.copy_(tensor.flip(0).clone())
    for tensor in captured:
        tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
    graph.replay()
    for a, b in zip(captured, outputs(op(name)(*arguments)), strict=True):
        torch.testing.assert_close(a, b)


@EVERY_OP
@EVERY_BACKEND
def test_two_runs_are_bitwise_equal(
    monkeypatch: pytest.MonkeyPatch, name: str, backend: str
) -> None:
    arguments = on_gpu(name)
    force(monkeypatch, backend, name, arguments)
    first, second = (outputs(op(name)(*arguments)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
