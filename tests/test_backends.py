from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

import ocvtp_kernels as ocvtp
from ocvtp_kernels import backends
from tests.cases import CPU_WAYS, DEVICE, running
from tests.ops.cases import ARGUMENTS, op, outputs


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
        backends.choose("lone", [torch.zeros(1)])


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("way", CPU_WAYS)
def test_every_op_runs_every_way(name: str, way: str) -> None:
    with running(way):
        forced = outputs(op(name)(*ARGUMENTS[name](dtype=torch.float64)))
    for a, b in zip(forced, outputs(op(name)(*ARGUMENTS[name](dtype=torch.float64))), strict=True):
        torch.testing.assert_close(a, b)


def test_a_kernel_for_other_devices_says_why() -> None:
    assert backends.why_not("prune", "cpu", "cuda") is not None
    assert backends.why_not("prune", "cpu", "cpu") is None
    assert backends.chosen("prune", "cpu") == "cpu"
    assert "not on cpu" in str(backends.why_not("prune", "triton", "cpu"))


def test_the_gpu_kernels_are_chosen_by_chip_and_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(backends, "_why_no_cuda", lambda _: "not built")
    monkeypatch.setattr(backends, "interpreting", lambda: True)
    for capability, backend in ((70, "reference"), (80, "triton"), (90, "triton")):
        monkeypatch.setattr(backends, "capability_of", lambda _, here=capability: here)
        backends._why_no_triton.cache_clear()
        assert backends.chosen("prune", "cuda") == backend
        assert backends.chosen("prune", "cuda:1") == backend
    backends._why_no_triton.cache_clear()
    wide = ARGUMENTS["prune"](dtype=torch.float64)
    assert "not float64" in str(backends.why_not_these("prune", "triton", wide))


def test_what_the_triton_selection_cannot_hold_is_said() -> None:
    pytest.importorskip("triton")
    picks = torch.zeros(1, 4, dtype=torch.int64, device=DEVICE)
    with (
        ocvtp.use_backend("triton"),
        pytest.raises(ocvtp.BackendUnavailable, match="at most 16384 tokens"),
    ):
        torch.ops.ocvtp.resolve_picks(picks, torch.zeros(1, 4, device=DEVICE), None, 3, 20000)


def test_what_the_cuda_kernels_cannot_hold_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "why_not", lambda *_: None)
    monkeypatch.setattr(backends, "capability_of", lambda _: 75)
    picks = torch.zeros(1, 40000, 2, dtype=torch.int64)
    many = backends.why_not_these(
        "resolve_picks", "cuda", [picks, torch.zeros(1, 40000), None, 3, 9]
    )
    assert "at most 65535 picks an image, not 80000" in str(many)
    wide = backends.why_not_these("prune", "cuda", ARGUMENTS["prune"](dtype=torch.float64))
    assert "the cuda backend takes float16, bfloat16 and float32" in str(wide)
    half = backends.why_not_these("prune", "cuda", ARGUMENTS["prune"](dtype=torch.bfloat16))
    assert half == "bfloat16 needs sm_80 or newer"
    reference, final, weights, slots, *rest = ARGUMENTS["prune"]()
    long = [reference, final, weights, slots.new_zeros(2, 7, 9000), *rest]
    assert "at most 8192 channels, not 9000" in str(backends.why_not_these("prune", "cuda", long))
    assert backends.why_not_these("prune", "cuda", ARGUMENTS["prune"]()) is None


def test_the_cuda_kernels_serve_the_chips_that_they_were_built_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    info = SimpleNamespace(cuda_architectures=("7.5", "9.0"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(backends.native, "why_not", lambda _: None)
    monkeypatch.setattr(backends.native, "build_info", lambda: info)
    for capability, reason in ((70, "sm_75 and newer, not sm_70"), (75, "None"), (86, "None")):
        monkeypatch.setattr(backends, "capability_of", lambda _, here=capability: here)
        backends._why_no_cuda.cache_clear()
        assert reason in str(backends.why_not("prune", "cuda", "cuda"))
    assert backends.chosen("prune", "cuda:0") == "triton"
    monkeypatch.setattr(backends, "capability_of", lambda _: 75)
    backends._why_no_triton.cache_clear()
    assert backends.chosen("prune", "cuda:1") == "cuda"
    backends._why_no_cuda.cache_clear()
    backends._why_no_triton.cache_clear()


def test_bfloat16_is_refused_in_the_interpreter_and_the_cpu_never_prefers_it() -> None:
    pytest.importorskip("triton")
    arguments = ARGUMENTS["prune"](dtype=torch.bfloat16)
    assert backends.choose("prune", arguments) is backends._kernels["prune"]["cpu"].run
    if backends.interpreting():
        with (
            ocvtp.use_backend("triton"),
            pytest.raises(ocvtp.BackendUnavailable, match="no bfloat16"),
        ):
            op("prune")(*arguments)


def test_the_choice_ends_with_its_block_and_stays_in_its_thread() -> None:
    with ThreadPoolExecutor(1) as other, ocvtp.use_backend("reference"):
        assert backends.chosen("prune", "cpu") == "reference"
        assert other.submit(backends.chosen, "prune", "cpu").result() == "cpu"
    assert backends.chosen("prune", "cpu") == "cpu"
