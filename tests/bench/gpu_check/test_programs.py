"""The programs of stages, on a stand-in for a GPU."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from bench.gpu_check import every_op, native_here, one_prune, smoke, stages
from bench.gpu_check.smoke import NONE_RIGHT
from bench.rehearsal import standing_in
from bench.workloads import Workload
from ocvtp_kernels import backends, native
from tests.ops.cases import ARGUMENTS


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(smoke, "LOADS", (Workload(1, 40, 7, 7, 24, 16),))
    # Kernels are replaced as well, so Triton's interpreter does not matter.
    monkeypatch.setattr(backends, "interpreting", lambda: False)
    with standing_in():
        yield


def answers(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    path = folder / "smoke.json"
    status = smoke.main(["--output", str(path), *arguments])
    return status, json.loads(path.read_text("utf-8"))


def test_both_backends_are_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, said = answers(tmp_path)
    assert status == 0 and said["chip"] == "sm_90" and said["absent"] == {}
    answered = [(one["backend"], one["right"]) for one in said["answers"]]
    assert answered == [("triton", True), ("cuda", True)]
    assert all("timed by graph" in one["note"] for one in said["answers"])
    assert capsys.readouterr().out.count(": right: ") == 2
    monkeypatch.setattr(backends, "_no_cuda_reason", lambda _: "it is not built")
    status, said = answers(tmp_path)
    assert status == 0 and said["absent"] == {"cuda": "it is not built"}
    # A backend that is asked for must be there.
    assert answers(tmp_path, "--backends", "triton,cuda")[0] == 1


def test_what_is_wrong_or_cannot_be_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, measure, bad = backends._kernels["prune"]["cpu"].run, smoke.measure, {"cuda"}

    def wrong(*arguments: Any) -> Any:
        tokens, ids = honest(*arguments)
        return (tokens, ids) if backends.override() not in bad else (tokens, ids + 1)

    monkeypatch.setitem(backends._kernels["prune"], "cpu", backends.Kernel(wrong))
    status, said = answers(tmp_path)
    assert status == 1 and [one["right"] for one in said["answers"]] == [True, False]
    bad.add("triton")
    assert answers(tmp_path)[0] == NONE_RIGHT
    bad.clear()
    monkeypatch.setattr(
        smoke, "measure", lambda calls, **given: measure(calls, **{**given, "capture": ()})
    )
    status, said = answers(tmp_path)
    assert status == NONE_RIGHT
    assert all(one["note"].startswith("no CUDA graph") for one in said["answers"])


def test_without_a_gpu_or_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    # Undone before the stand-in, which puts back what it found.
    with mock.patch.object(torch.cuda, "is_available", lambda: False):
        assert smoke.main([]) == NONE_RIGHT
        assert native_here.main("cuda") == native_here.NO_DEVICE == stages.NO_DEVICE
    monkeypatch.setattr(backends, "interpreting", lambda: True)
    assert smoke.main([]) == NONE_RIGHT


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_every_op_is_called(
    backend: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert every_op.main(backend) == 0
    with_kernel = [name for name in ARGUMENTS if backend in backends._kernels.get(name, {})]
    calls = [name for name, _, _ in every_op.calls() if name in with_kernel]
    assert capsys.readouterr().out == f"{len(calls)} calls on {backend}\n"
    assert {name for name, _, _ in every_op.calls()} == set(ARGUMENTS)
    # A sanitizer that saw nothing is no success.
    monkeypatch.setattr(backends, "unsupported_by_call", lambda *_: "it is not here")
    assert every_op.main(backend) == 1


def test_one_call_is_profiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(one_prune, "SIZES", ((2, 40, 7),))
    assert one_prune.main(0) == 0
    assert capsys.readouterr().out.strip() == "B 2, N 40, K 7, bfloat16"


def test_native_objects_of_another_arch_are_not_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built = native.BuildInfo("gcc", 17, "Release", "", "x86_64", ("8.0", "9.0"), "", {})
    monkeypatch.setattr(native, "build_info", lambda: built)
    assert native_here.main("cuda") == 0
    assert capsys.readouterr().out == "chip 9.0\nhere\n"
    other = dataclasses.replace(built, cuda_architectures=("8.0",))
    monkeypatch.setattr(native, "build_info", lambda: other)
    assert native_here.main("cuda") == 1
    assert capsys.readouterr().out == "chip 9.0\nbuilt for 8.0, this is 9.0\n"
