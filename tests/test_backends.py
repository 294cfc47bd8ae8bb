from __future__ import annotations

import contextvars
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ocvtp_kernels as ocvtp
from ocvtp_kernels import backends
from tests.cases import CPU_BACKENDS, DEVICE, outputs, running
from tests.ops.cases import ARGUMENTS, op


def test_unknown_names_are_refused() -> None:
    with (
        pytest.raises(ValueError, match="backend: expected one of"),
        ocvtp.use_backend("cudnn"),
    ):
        pass


def test_an_impossible_choice_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ocvtp.BackendUnavailable, match="cuda"), ocvtp.use_backend("cuda"):
        pass
    monkeypatch.setattr(backends, "interpreting", lambda: False)
    with pytest.raises(ocvtp.BackendUnavailable, match="no GPU"), ocvtp.use_backend("triton"):
        pass


def test_an_op_without_the_kernel_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends._kernels, "lone", {"reference": backends.Kernel(print)})
    with (
        ocvtp.use_backend("cpu"),
        pytest.raises(ocvtp.BackendUnavailable, match="lone has no cpu kernel"),
    ):
        backends.select_kernel("lone", [torch.zeros(1)])


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_every_op_runs_on_every_backend(name: str, backend: str) -> None:
    with running(backend):
        forced = outputs(op(name)(*ARGUMENTS[name](dtype=torch.float64)))
    for a, b in zip(forced, outputs(op(name)(*ARGUMENTS[name](dtype=torch.float64))), strict=True):
        torch.testing.assert_close(a, b)


def test_a_kernel_for_other_devices_says_why() -> None:
    assert backends.unsupported_reason("prune", "cpu", "cuda") is not None
    assert backends.unsupported_reason("prune", "cpu", "cpu") is None
    assert backends.select_backend("prune", "cpu") == "cpu"
    assert "not on cpu" in str(backends.unsupported_reason("prune", "triton", "cpu"))


def test_the_gpu_kernels_are_chosen_by_arch_and_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(backends, "_no_cuda_reason", lambda _: "not built")
    monkeypatch.setattr(backends, "interpreting", lambda: True)
    for capability, backend in ((70, "reference"), (80, "triton"), (90, "triton")):
        monkeypatch.setattr(backends, "capability_of", lambda _, here=capability: here)
        backends._no_triton_reason.cache_clear()
        assert backends.select_backend("prune", "cuda") == backend
        assert backends.select_backend("prune", "cuda:1") == backend
    backends._no_triton_reason.cache_clear()
    wide = ARGUMENTS["prune"](dtype=torch.float64)
    assert "not float64" in str(backends.unsupported_by_call("prune", "triton", wide))


def test_what_the_triton_selection_cannot_hold_is_said() -> None:
    pytest.importorskip("triton")
    picks = torch.zeros(1, 4, dtype=torch.int64, device=DEVICE)
    with (
        ocvtp.use_backend("triton"),
        pytest.raises(ocvtp.BackendUnavailable, match="at most 16384 tokens"),
    ):
        torch.ops.ocvtp.resolve_picks(picks, torch.zeros(1, 4, device=DEVICE), None, 3, 20000)


def test_what_the_cuda_kernels_cannot_hold_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "unsupported_reason", lambda *_: None)
    monkeypatch.setattr(backends, "capability_of", lambda _: 75)
    picks = torch.zeros(1, 40000, 2, dtype=torch.int64)
    many = backends.unsupported_by_call(
        "resolve_picks", "cuda", [picks, torch.zeros(1, 40000), None, 3, 9]
    )
    assert "at most 65535 picks an image, not 80000" in str(many)
    wide = backends.unsupported_by_call("prune", "cuda", ARGUMENTS["prune"](dtype=torch.float64))
    assert "the cuda backend takes float16, bfloat16 and float32" in str(wide)
    half = backends.unsupported_by_call("prune", "cuda", ARGUMENTS["prune"](dtype=torch.bfloat16))
    assert half == "bfloat16 needs sm_80 or newer"
    reference, final, weights, slots, *rest = ARGUMENTS["prune"]()
    long = [reference, final, weights, slots.new_zeros(2, 7, 9000), *rest]
    assert "at most 8192 channels, not 9000" in str(
        backends.unsupported_by_call("prune", "cuda", long)
    )
    assert backends.unsupported_by_call("prune", "cuda", ARGUMENTS["prune"]()) is None


@pytest.mark.parametrize("name", ["slot_attention", "slot_attention_with_attention", "merge"])
def test_rows_without_a_channel_are_left_to_other_backends(name: str) -> None:
    pytest.importorskip("triton")
    q, k, values, *rest = (
        x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in ARGUMENTS[name]()
    )
    arguments = [q, k, values[..., :0], *rest]
    with (
        ocvtp.use_backend("triton"),
        pytest.raises(ocvtp.BackendUnavailable, match="at least one channel, not 10 and 0"),
    ):
        op(name)(*arguments)
    with ocvtp.use_backend("reference"):
        expected = outputs(op(name)(*arguments))
    for got, plain in zip(outputs(op(name)(*arguments)), expected, strict=True):
        torch.testing.assert_close(got, plain)


def test_the_cuda_kernels_serve_the_archs_that_they_were_built_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    info = SimpleNamespace(cuda_architectures=())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(backends.native, "missing_reason", lambda _: None)
    monkeypatch.setattr(backends.native, "build_info", lambda: info)
    for built, capability, runs in (
        ("7.0 9.0", 80, False),
        ("7.0 9.0", 75, True),
        ("7.0 9.0", 90, True),
        ("8.0", 86, True),
        ("8.6", 80, False),
        ("8.6", 89, True),
        ("8.0 9.0", 120, True),
        ("8.0 12.0", 100, False),
        ("8.0 12.0", 121, True),
        ("7.5 9.0", 70, False),
        ("7.5 9.0", 86, False),
        ("7.5 9.0", 75, True),
    ):
        info.cuda_architectures = tuple(built.split())
        monkeypatch.setattr(backends, "capability_of", lambda _, here=capability: here)
        backends._no_cuda_reason.cache_clear()
        reason = backends.unsupported_reason("prune", "cuda", "cuda")
        archs = ", ".join(f"sm_{arch.replace('.', '')}" for arch in built.split())
        said = f"the CUDA kernels are built for {archs}, which sm_{capability} does not run"
        assert reason == (None if runs else said)
    monkeypatch.setattr(backends, "capability_of", lambda _: 86)
    assert backends.select_backend("prune", "cuda:0") == "triton"
    monkeypatch.setattr(backends, "capability_of", lambda _: 75)
    backends._no_triton_reason.cache_clear()
    assert backends.select_backend("prune", "cuda:1") == "cuda"
    backends._no_cuda_reason.cache_clear()
    backends._no_triton_reason.cache_clear()


def test_bfloat16_is_refused_in_the_interpreter_and_the_cpu_never_prefers_it() -> None:
    pytest.importorskip("triton")
    arguments = ARGUMENTS["prune"](dtype=torch.bfloat16)
    assert backends.select_kernel("prune", arguments) is backends._kernels["prune"]["cpu"].run
    if backends.interpreting():
        with (
            ocvtp.use_backend("triton"),
            pytest.raises(ocvtp.BackendUnavailable, match="no bfloat16"),
        ):
            op("prune")(*arguments)


def test_the_choice_ends_with_its_block_and_stays_in_its_thread() -> None:
    with ThreadPoolExecutor(1) as other, ocvtp.use_backend("reference"):
        assert backends.select_backend("prune", "cpu") == "reference"
        assert other.submit(backends.select_backend, "prune", "cpu").result() == "cpu"
    assert backends.select_backend("prune", "cpu") == "cpu"


Calls = list[tuple[str, int]]


@pytest.fixture
def gradient_calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Which backends ran the gradient of Slot Attention, and in which threads."""
    calls: Calls = []

    def counted(backend: str, run: Any) -> Any:
        def record(*args: Any) -> Any:
            calls.append((backend, threading.get_ident()))
            return run(*args)

        return record

    kernels = backends._kernels["slot_attention_backward"]
    for backend, kernel in list(kernels.items()):
        monkeypatch.setitem(kernels, backend, kernel._replace(run=counted(backend, kernel.run)))
    return calls


def attended() -> torch.Tensor:
    q, k, v = (torch.rand(1, size, 4, requires_grad=True) for size in (2, 3, 3))
    updates, _ = torch.ops.ocvtp.slot_attention(q, k, v, 0.5)
    return updates.sum()


@pytest.mark.parametrize(
    ("forward", "backward", "expected"),
    [
        (None, None, "cpu"),
        (None, "reference", "reference"),
        ("reference", None, "reference"),
        ("reference", "cpu", "cpu"),
        ("cpu", "reference", "reference"),
    ],
)
def test_the_backend_around_backward_runs_gradients_else_that_around_the_op(
    forward: str | None, backward: str | None, expected: str, gradient_calls: Calls
) -> None:
    with ocvtp.use_backend(forward) if forward else nullcontext():
        loss = attended()
    with ocvtp.use_backend(backward) if backward else nullcontext():
        loss.backward()
    assert gradient_calls == [(expected, threading.get_ident())]
    assert backends.override() is None


def of_backward(remembered: backends.Remembered) -> str | None:
    with backends.in_backward(remembered):
        return backends.override()


@pytest.mark.parametrize("torch_tells", [False, True])
def test_threads_of_autograd_go_by_their_own_caller(
    torch_tells: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = threading.local()
    monkeypatch.setattr(torch._C, "_is_key_in_tls", lambda _: hasattr(caller, "context"))
    monkeypatch.setattr(torch._C, "_get_obj_in_tls", lambda _: caller.context)

    def in_thread_of_autograd(
        remembered: backends.Remembered, context: contextvars.Context
    ) -> str | None:
        if torch_tells:
            caller.context = context
        return of_backward(remembered)

    def train(forward: str | None, backward: str | None) -> str | None:
        with ocvtp.use_backend(forward) if forward else nullcontext():
            remembered = backends.remember(torch.device("cuda"))
        with (
            ThreadPoolExecutor(1) as engine,
            ocvtp.use_backend(backward) if backward else nullcontext(),
        ):
            both.wait()
            context = contextvars.copy_context()
            return engine.submit(in_thread_of_autograd, remembered, context).result()

    for cases in product([(None, "cpu"), ("reference", None), ("cpu", "reference")], repeat=2):
        both = threading.Barrier(2)
        with ThreadPoolExecutor(2) as callers:
            found = [callers.submit(train, *case) for case in cases]
            assert [each.result() for each in found] == [after or before for before, after in cases]


def test_a_block_that_ends_out_of_order_takes_only_its_own_choice() -> None:
    remembered = backends.remember(torch.device("cuda"))
    one, other = ocvtp.use_backend("reference"), ocvtp.use_backend("cpu")
    contexts = [contextvars.copy_context() for _ in range(2)]
    contexts[0].run(one.__enter__)
    contexts[1].run(other.__enter__)
    contexts[0].run(one.__exit__, None, None, None)
    assert list(remembered.overrides.values()) == ["cpu"]
    contexts[1].run(other.__exit__, None, None, None)
    assert not remembered.overrides


# On the CPU autograd goes on in a thread of its own where backward passes call one another deeply.
# The process ends at once, since torch may not join that thread.
DEEP = """
import os, threading
import torch
import ocvtp_kernels as ocvtp
from ocvtp_kernels import backends

class Nested(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, levels):
        ctx.levels = levels
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            below(ctx.levels - 1).backward()
        return grad, None

def below(levels):
    leaf = torch.rand(1, 3, 4, requires_grad=True)
    if levels:
        return Nested.apply(leaf, levels).sum()
    with ocvtp.use_backend("cpu"):
        return torch.ops.ocvtp.slot_attention(leaf, leaf, leaf, 0.5)[0].sum()

ran = []
kernels = backends._kernels["slot_attention_backward"]
for name, kernel in list(kernels.items()):
    def run(*args, name=name, run=kernel.run):
        ran.append((name, threading.get_ident()))
        return run(*args)
    kernels[name] = kernel._replace(run=run)
levels = 0
while not ran or ran[-1][1] == threading.get_ident():
    levels += 1
    with ocvtp.use_backend("reference"):
        below(levels).backward()
print(levels, {name for name, _ in ran}, flush=True)
os._exit(0)
"""


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13),
    reason="torch 2.13 hands its caller's context to autograd's threads",
)
def test_the_backend_around_backward_holds_in_a_thread_of_autograds_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DEEP], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split(maxsplit=1)[1].strip() == "{'reference'}"
