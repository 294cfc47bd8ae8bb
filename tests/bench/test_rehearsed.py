"""What needs a GPU runs on one that is played: the bench's branches, and tests marked ``gpu``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import ceilings, jobs, run
from bench.jobs import Job
from bench.rehearsal import standing_in
from bench.results import OURS, Ceilings, Suite, read_results
from bench.selectors import run as selectors
from bench.timing import side_stream
from bench.workloads import Workload, Workloads
from ocvtp_kernels import backends
from tests.bench import test_gate, test_timing
from tests.bench.selectors.cases import JOB, ONE
from tests.bench.suites import empty_results, quick
from tests.ops import test_gpu

ROOT = Path(__file__).resolve().parents[2]
GPU = torch.device("cuda")
TINY = Workload(2, 40, 7, 7, 24, 16)
JOBS = [
    job
    for suite in ("prune", "ops")
    for job in jobs.jobs(suite, Workloads((TINY,), (TINY,), (TINY,)))
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
def gpu(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Iterator[torch.device]:
    """The stand-in, and few rounds."""
    for module in (jobs, selectors, ceilings):
        monkeypatch.setattr(module, "measure", quick)
    with standing_in(), side_stream(GPU):
        yield GPU


@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{job.op}-{job.direction}")
def test_an_op_is_timed_in_graphs(gpu: torch.device, job: Job) -> None:
    found, _ = jobs.time_job(job, gpu, 0.0)
    assert all(one.gate.passed for one in found), [one.gate.note for one in found]
    methods = {(one.variant, one.taken.method) for one in found}
    is_training = job.op == "training"
    assert (OURS, "events" if is_training else "graph") in methods
    # This reference goes image by image and waits for the device.
    waits = job.op == "centrifugal_select"
    assert ("eager", "events" if waits or is_training else "graph") in methods
    assert ((OURS, "events") in methods) == (job == Job("prune", TINY) or is_training)


def test_other_peoples_kernels_are_timed_where_they_are(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fused_slice(k: Tensor, v: Tensor, q: Tensor, bias: None, temperature: Tensor) -> Any:
        attention = (torch.einsum("bnhd,bhkd->bhkn", k, q) / temperature).softmax(dim=2)
        return torch.einsum("bhkn,bnhd->bhkd", attention, v), attention.sum(-1)

    def flash_colreduce(q: Tensor, k: Tensor, reduction: str, is_causal: bool = False) -> Tensor:
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        if is_causal:
            future = torch.ones_like(scores[0, 0], dtype=torch.bool)
            scores = scores.masked_fill(future.triu(1 + k.shape[2] - q.shape[2]), -torch.inf)
        return scores.softmax(-1).mean(2) if reduction == "mean" else scores.softmax(-1).sum(2)

    module = SimpleNamespace(
        fused_slice=fused_slice, unsupported_dims=lambda *_: None, flash_colreduce=flash_colreduce
    )
    for name in ("flashslice", "flashslice.kernels", "flash_colreduce"):
        monkeypatch.setitem(sys.modules, name, module)
    of_rows = [("attention_from_rows", replace(TINY, mode=mode)) for mode in ("no_grad", "raters")]
    colreduce = [(Job(*each), "colreduce") for each in (("attention_received", TINY), *of_rows)]
    for job, name in ((Job("slot_attention", TINY), "flashslice"), *colreduce):
        found, left_out = jobs.time_job(job, gpu, 0.0)
        (one,) = [one for one in found if one.variant == name]
        assert one.gate.passed and one.times is not None, one.gate.note
        assert one.times.method == "graph" and not any(name in said for said in left_out)


def test_every_selector_is_timed_twice(gpu: torch.device) -> None:
    for job in (JOB, ONE):
        rows = selectors.time_job(job, gpu, time.monotonic() + 600)
        assert all(row.gate.passed for row in rows), [row.gate.note for row in rows]
        assert all(row.graph is not None for row in rows)
        assert {row.times and row.times.method for row in rows} == {"events"}
        assert sum(row.loop is not None for row in rows) == (2 if job is ONE else 0)


def test_ceilings_are_measured(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(*size: int, **given: Any) -> Tensor:
        return torch.randn(*(min(each, 64) for each in size), **given)

    # The sizes that fill a GPU take minutes here.
    monkeypatch.setattr(ceilings, "torch", SimpleNamespace(**{**vars(torch), "randn": small}))
    found = ceilings.measure_ceilings(gpu, ("float32", "bfloat16"), short=True)
    assert found.copy_gb_s > 0 and set(found.matmul_tflops) == {"float32", "bfloat16"}


@pytest.mark.parametrize("suite", ["prune", "compile", "ceilings"])
def test_the_command_writes_what_it_found(
    gpu: torch.device, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "workloads", lambda *_: Workloads((TINY,), (), compiled=(TINY,)))
    monkeypatch.setattr(run, "measure_ceilings", lambda *_: Ceilings(10.0, {"float32": 0.1}))
    # Inductor, once imported, would remember the GPU.
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    assert run.main(["--suite", suite, "--device", "cuda", "--output", str(tmp_path)]) == 0
    found = read_results(tmp_path / f"{suite}.json")
    assert found.device == torch.cuda.get_device_name()
    methods = {row.times and row.times.method for row in found.op_rows()}
    assert methods == (set() if suite == "ceilings" else {"graph", "events"})


@pytest.mark.slow
def test_whole_models_are_timed(
    gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    from bench.models import run as models
    from bench.models.llava import TINY, TINY_NEXT
    from bench.models.plan import Job

    todo = [Job(shape, 1, shape.budgets[:1]) for shape in (TINY, TINY_NEXT)]
    monkeypatch.setattr(models, "plan", lambda *_: todo)
    monkeypatch.setattr(models, "measure", quick)
    results = empty_results("e2e")
    assert models.run(results, tmp_path, gpu, True, time.monotonic() + 600) == 0
    rows: list[Any] = results.rows
    assert len(rows) == 12 and all(row.times for row in rows)
    # The model itself packs its tiles on the host.
    noted = {(row.model, row.mode, row.selector) for row in rows if row.note}
    assert noted == {(TINY_NEXT.name, "static", "unpruned")}


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
