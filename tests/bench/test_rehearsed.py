"""What needs a GPU runs on one that is played: the bench's branches, and tests marked ``gpu``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import ceilings, run, selectors
from bench.ceilings import Ceilings
from bench.ops import BENCHES
from bench.rehearsal import standing_in
from bench.results import Result
from bench.run import Job
from bench.shapes import Workload, Workloads
from bench.timing import measure, side_stream
from ocvtp_kernels import backends
from tests.bench import test_gate, test_timing
from tests.bench.selector_cases import JOB, ONE
from tests.ops import test_gpu

ROOT = Path(__file__).resolve().parents[2]
GPU = torch.device("cuda")
TINY = Workload(2, 40, 7, 7, 24, 16)
JOBS = [
    job
    for kind in ("prune", "micro")
    for job in run.jobs(kind, Workloads((TINY,), (TINY,), (TINY,)), BENCHES)
]

# Tests marked gpu that are not rehearsed, by pytest's -k, and why.
UNREHEARSED = {
    "ids_are_batch_invariant and not (64 and dtype2)": "64 images in half precision, or with 160 "
    "slots, take minutes; in float32 with 64 they do not",
    "the_cuda_kernels_are_batch_invariant and not dtype2": "the raw ops' CPU kernels take no half "
    "precision",
    "no_slot_misses and 2880 and not dtype2": "2880 tokens in half precision are slow; in float32 "
    "they are not",
}
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU is better")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The stand-in, and few rounds, as no figure is read."""

    def quick(calls: Any, /, **given: Any) -> Any:
        return measure(calls, **{**given, "seconds": 0.0, "rounds": (2, 2)})

    for module in (run, selectors, ceilings):
        monkeypatch.setattr(module, "measure", quick)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with standing_in(), side_stream(GPU):
        yield GPU
    torch.set_num_threads(threads)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{job.op}-{job.direction}")
def test_an_op_is_timed_in_graphs(gpu: torch.device, job: Job) -> None:
    found, _ = run.time_job(job, gpu, 0.0)
    assert all(one.check.passed for one in found), [one.check.note for one in found]
    methods = {(one.variant, one.timing.method) for one in found if one.timing is not None}
    ours = "prune" if job == Job("prune", TINY) else "ocvtp"
    assert (ours, "graph") in methods
    # This reference goes image by image and waits for the device.
    waits = job.op == "centrifugal_select"
    assert ("eager", "events" if waits else "graph") in methods
    assert ((ours, "events") in methods) == (ours == "prune")


def test_other_peoples_kernels_are_timed_where_they_are(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fused_slice(
        k: Tensor, v: Tensor, q: Tensor, bias: None, temperature: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = torch.einsum("bnhd,bhkd->bhkn", k, q) / temperature
        attention = logits.softmax(dim=2)
        return torch.einsum("bhkn,bnhd->bhkd", attention, v), attention.sum(-1)

    def flash_colreduce(q: Tensor, k: Tensor, reduction: str) -> Tensor:
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        return scores.softmax(-1).mean(2) if reduction == "mean" else scores

    theirs = {
        "flashslice.kernels": SimpleNamespace(
            fused_slice=fused_slice, unsupported_dims=lambda *_: None
        ),
        "flash_colreduce": SimpleNamespace(flash_colreduce=flash_colreduce),
    }
    for name, module in theirs.items():
        monkeypatch.setitem(sys.modules, name.partition(".")[0], module)
        monkeypatch.setitem(sys.modules, name, module)
    for op, name in (("slot_attention", "flashslice"), ("attention_received", "colreduce")):
        found, left_out = run.time_job(Job(op, TINY), gpu, 0.0)
        (one,) = [one for one in found if one.variant == name]
        assert one.check.passed and one.timing is not None, one.check.note
        assert one.timing.method == "graph" and not any(name in said for said in left_out)


def test_every_selector_is_timed_twice(gpu: torch.device) -> None:
    for job in (JOB, ONE):
        rows = selectors.time_job(job, gpu, time.monotonic() + 600)
        assert all(row.gate.passed for row in rows), [row.gate.note for row in rows]
        assert all(row.graph_median_s is not None for row in rows)
        assert all(row.gate.note.endswith("timed by events") for row in rows)
        assert sum(row.loop is not None for row in rows) == (2 if job is ONE else 0)


def test_ceilings_are_measured(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(*size: int, **given: Any) -> Tensor:
        return torch.randn(*(min(each, 64) for each in size), **given)

    # The sizes that fill a GPU take minutes here.
    monkeypatch.setattr(ceilings, "torch", SimpleNamespace(**{**vars(torch), "randn": small}))
    found = ceilings.measure_ceilings(gpu, ("float32", "bfloat16"), short=True)
    assert found.copy_gb_s > 0 and set(found.matmul_tflops) == {"float32", "bfloat16"}


@pytest.mark.parametrize("kind", ["prune", "compile", "ceilings"])
def test_the_command_writes_what_it_found(
    gpu: torch.device, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "workloads", lambda *_: Workloads((TINY,), (), compiled=(TINY,)))
    monkeypatch.setattr(run, "measure_ceilings", lambda *_: Ceilings(10.0, {"float32": 0.1}))
    # Inductor, once imported, would remember the GPU.
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    assert run.main([kind, "--device", "cuda", "--output", str(tmp_path)]) == 0
    read = json.loads((tmp_path / f"{kind}.json").read_text(encoding="utf-8"))
    assert read["device"] == torch.cuda.get_device_name()
    methods = {row["method"] for row in read["rows"]}
    assert methods == (set() if kind == "ceilings" else {"graph", "events"})


@pytest.mark.slow
def test_a_whole_model_is_captured(gpu: torch.device) -> None:
    pytest.importorskip("transformers")
    from bench.llava_calls import Static
    from bench.llava_gate import why_wrong
    from bench.llava_models import OCVTP, TINY, Choice, Vlm

    with torch.no_grad():
        model = Static(Vlm(TINY, gpu), Choice(OCVTP, TINY.budgets[0]), 1)
        assert model.note == "" and why_wrong(model, (1,)) is None
        assert model.decode().is_cuda


@pytest.mark.slow
def test_whole_models_are_timed(
    gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    from bench import llava
    from bench.llava_models import TINY, TINY_NEXT, UNPRUNED
    from bench.llava_plan import Job

    jobs = [Job(shape, 1, shape.budgets[:1]) for shape in (TINY, TINY_NEXT)]
    monkeypatch.setattr(llava, "plan", lambda *_: jobs)
    monkeypatch.setattr(llava, "measure", run.measure)
    result = Result("e2e", "a device", None, Ceilings(10.0))
    assert llava.run(result, tmp_path, gpu, True, time.monotonic() + 600) == 0
    assert len(result.rows) == 12 and all(row.ttft_s for row in result.rows)
    # The model itself packs its tiles on the host.
    noted = {(row.model, row.mode, row.selector) for row in result.rows if row.note}
    assert noted == {(TINY_NEXT.name, "static", UNPRUNED)}


@pytest.mark.parametrize("way", ["chosen", *backends.GPU_KERNELS])
def test_a_few_tests_of_ops_pass(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    test_gpu.test_never_waits_for_the_device(monkeypatch, "slot_argmax", way, torch.float32)
    test_gpu.test_a_captured_call_replays_on_new_inputs(monkeypatch, "prune", way)
    test_gpu.test_two_runs_are_bitwise_equal(monkeypatch, "gru_cell", way)


def test_a_few_tests_of_the_bench_pass(gpu: torch.device) -> None:
    test_timing.test_copies_pass_three_times_the_cache()
    test_timing.test_a_kernel_beside_the_graph_is_found_out()
    test_gate.test_ops_pass_on_cuda("merge", "backward")


def test_a_few_tests_of_models_pass(gpu: torch.device) -> None:
    pytest.importorskip("transformers")
    from tests.vlm import test_pending_selection_gpu

    test_pending_selection_gpu.test_small_overlap_changes_no_feature(True)
    test_pending_selection_gpu.test_small_overlap_is_captured_and_replayed()


@pytest.mark.slow
def test_every_test_for_a_gpu_passes() -> None:
    left_out = " and ".join(f"not ({some})" for some in UNREHEARSED)
    command = [sys.executable, "-m", "pytest", "-p", "tests.rehearsed", "-p", "no:cacheprovider"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-q", "-m", "gpu", "-k", left_out],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    found = re.search(r"(\d+) passed", done.stdout)
    assert found and int(found[1]) > 400, done.stdout


def test_what_is_not_rehearsed_is_there() -> None:
    source = (ROOT / "tests" / "ops" / "prune" / "test_gpu.py").read_text(encoding="utf-8")
    assert all(re.search(rf"def test_\w*{some.split()[0]}", source) for some in UNREHEARSED)
