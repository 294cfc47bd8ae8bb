"""The whole command on a stand-in for a GPU, at tiny sizes, every stage a process."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import checkout
from bench.gpu_check.__main__ import SUITES
from bench.gpu_check.screen import LINES
from bench.results import read_results

pytestmark = pytest.mark.slow

# Before any module of a stage is run: the stand-in, and tiny sizes. It is slower than a GPU.
SITE = """
import os, sys

module = sys.orig_argv[2] if sys.orig_argv[1:2] == ["-m"] else ""
if module == "bench.gpu_check":
    sys.path.insert(0, os.getcwd())
    from bench.gpu_check.stages import STAGES

    STAGES |= {name: stage._replace(max_s=8 * stage.max_s) for name, stage in STAGES.items()}
if module == "bench" or module.startswith("bench.gpu_check."):
    sys.path.insert(0, os.getcwd())
    import torch
    import bench.models.run, bench.selectors.run
    from bench import ceilings, results, workloads
    from bench.gpu_check import one_prune
    from bench.models import llava, plan
    from bench.rehearsal import standing_in
    from bench.selectors import inputs
    from ocvtp_kernels import native

    torch.set_num_threads(1)
    tiny = [workloads.Workload(batch, 40, 7, 7, 24, 16, "bfloat16") for batch in (1, 2)]
    workloads.CUDA_SHORT = workloads.Workloads(tuple(tiny), (tiny[0],), (tiny[1],), (tiny[0],))
    workloads.square = lambda *_, **__: tiny[0]
    one_prune.SIZES = one_prune.SIZES[:2]
    shape = llava.TINY
    bench.models.run.plan = lambda *_: [plan.Job(shape, 1, shape.budgets[:1])]
    bench.selectors.run.plan = lambda *_: [inputs.Job(1, 8, 8, 48, 4, 24, 32)]
    rates = results.Ceilings(10.0, {"float32": 0.1, "bfloat16": 0.1})
    ceilings.measure_ceilings = lambda *_: rates
    torch.compile = lambda function, **_: function
    torch.compiler.reset = torch.compiler.cudagraph_mark_step_begin = lambda: None
    built = native.BuildInfo("", 17, "", "", "", ("9.0",), "", {})
    native.build_info = lambda: built
    gpu = standing_in()
    gpu.__enter__()
"""
NCU = """#!/bin/sh
while [ "$1" != --log-file ]; do shift; done
printf '"ID","Kernel Name","Metric Name","Metric Value"\\n' >"$2"
printf '"0","linear_kernel","gpu__time_duration.sum","12,000"\\n' >>"$2"
shift 3
exec "$@"
"""
SANITIZER = """#!/bin/sh
while [ "$1" != --error-exitcode ]; do shift; done
shift 2
exec "$@"
"""
TESTS = "test_graphs_are_timed or (test_two_runs_are_bitwise_equal and gru_cell and gpu)"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU is better")
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_every_stage_is_run(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("triton")
    tools, out = tmp_path / "tools", tmp_path / "out"
    tools.mkdir()
    for name, text in (("ncu", NCU), ("compute-sanitizer", SANITIZER)):
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    (tools / "sitecustomize.py").write_text(SITE)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        "PYTHON": sys.executable,
        "PYTHONPATH": str(tools),
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTEST_ADDOPTS": f"-p tests.rehearsed -k '{TESTS}'",
    }
    given = ("--only", "smoke,build,warm,tests,prune,e2e,sanitizer,compile,profile,selectors")
    options = ("--commit", "abc", "--work", str(tmp_path / "work"), "--output", str(out))
    options += ("--total", "3600")
    done = subprocess.run(
        ["bash", str(checkout.ROOT / "bench" / "gpu_check.sh"), *given, *options],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert [one["status"] for one in summary["stages"]] == [0] * 10
    assert summary["facts"]["smoke"]["absent"] == {}
    assert summary["facts"]["gpu tests"]["passed"] > 3
    assert len(summary["facts"]["profile"]) == 3 and summary["facts"]["sanitizer"] == []
    for suite in SUITES:
        found = read_results(out / f"{suite}.json")
        assert found.commit == "abc" and found.device == "NVIDIA H100 80GB HBM3" and found.rows
    lines = (out / "screen.txt").read_text("utf-8").splitlines()
    assert len(lines) <= LINES and done.stdout.endswith("\n".join(lines) + "\n")
    assert not any(line.startswith(("refused:", "failed:", "wrong:")) for line in lines)
