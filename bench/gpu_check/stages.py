"""The stages of the check in order of importance, and their time limits."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.checkout import tests_marked
from bench.gpu_check import bundle, one_prune
from bench.gpu_check.running import OUT_OF_TIME, Check, Outcome
from bench.gpu_check.tests_read import Tests, read_junit

NONE_RIGHT = 3  # smoke's status where nothing else is worth its time
NO_DEVICE = 2  # native_here's status where there is no GPU
OTHERS = ("slot_attention", "attention_received")  # ops with third-party kernels
SANITIZED = (("memcheck", "triton"), ("memcheck", "cuda"), ("racecheck", "cuda"))
MAX_WORKERS = 12  # of pytest


class Stage(NamedTuple):
    """One part of the check.

    Attributes:
        expected: seconds on an H100 with the bundle.
        max_s: time limit in seconds.
        does: what it runs.
        gpu_only: why nothing is run without a GPU.
        tool: without which it fails.
    """

    expected: int
    max_s: int
    does: Callable[[Check], Outcome]
    gpu_only: str = ""
    tool: str = ""

    def run(self, check: Check) -> Outcome:
        """Runs it, where it can be."""
        if self.gpu_only and not check.cuda:
            return Outcome(0, self.gpu_only)
        if self.tool and not _has_tool(self.tool):
            return Outcome(1, f"there is no {self.tool}")
        return self.does(check)


def smoke(check: Check) -> Outcome:
    """`bench.gpu_check.smoke`, on all available backends."""
    check.facts.pop("smoke", None)
    status = _smoke(check)
    absent = check.facts.get("smoke", {}).get("absent", {})
    notes = [f"{backend} is not here yet: {why}" for backend, why in absent.items()]
    return Outcome(status, "; ".join(notes) if notes else _last_line(check) if status else "")


def _smoke(check: Check, *arguments: str, share: float = 1.0) -> int:
    output = check.folder / "smoke.json"
    output.unlink(missing_ok=True)
    options = ("--device", check.device, "--output", str(output), *arguments)
    status = check.python("-m", "bench.gpu_check.smoke", *options, share=share)
    if output.exists():
        facts = json.loads(output.read_text(encoding="utf-8"))
        facts["answers"] = [*check.facts.get("smoke", {}).get("answers", []), *facts["answers"]]
        check.facts["smoke"] = facts
    return status


def build(check: Check) -> Outcome:
    """The native objects, unless those of the bundle are for this GPU; on a GPU they must load."""
    status = check.python("-m", "bench.gpu_check.native_here", check.device)
    if status == 0:
        return Outcome(0, "the native objects are here")
    if status == NO_DEVICE:
        return Outcome(status, _last_line(check))
    if not check.cuda and not all(map(_has_tool, ("cmake", "ninja"))):
        return Outcome(0, "nothing native was built, for want of cmake or ninja")
    arguments = ("--disable-pip-version-check", "install", "--no-build-isolation", "--no-deps")
    native = {"OCVTP_NATIVE": "cuda" if check.cuda else "1"}
    if check.cuda:
        # For this GPU alone: compiling for every architecture takes minutes.
        archs = re.findall(r"^chip (\S+)$", check.said(), re.MULTILINE)
        native["OCVTP_CUDA_ARCHITECTURES"] = " ".join(archs[:1])
    status = check.python("-m", "pip", *arguments, "-e", ".", share=0.7, **native)
    if status == 0:
        status = check.python("-m", "bench.gpu_check.native_here", check.device, share=0.1)
    if status == 0 and check.cuda:
        status = _smoke(check, "--backends", "cuda", share=0.2)
    return Outcome(status, _last_line(check) if status else "")


def warm(check: Check) -> Outcome:
    """Compiles the bundle's kernels that Triton's cache lacks."""
    lists = check.prepared / bundle.LIST
    if not check.cuda or not lists.exists():
        return Outcome(0, "no list of launches: kernels are compiled when they are launched")
    status = check.python("-m", "bench.gpu_check.warm", str(lists))
    return Outcome(status, _last_line(check))


def sanitizer(check: Check) -> Outcome:
    """compute-sanitizer over every op."""
    failed = []
    for tool, backend in SANITIZED:
        status = check.run(
            *("compute-sanitizer", "--tool", tool, "--target-processes", "application-only"),
            *("--error-exitcode", "9", sys.executable, "-m", "bench.gpu_check.every_op", backend),
            share=1 / len(SANITIZED),
            # Without torch's memory cache every tensor is an allocation, whose bounds are checked.
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",
        )
        if status:
            why = "out of time" if status == OUT_OF_TIME else f"status {status}"
            failed.append(f"{tool} of {backend}: {why}")
    check.facts["sanitizer"] = failed
    return Outcome(int(bool(failed)), "; ".join(failed))


def compiled(check: Check) -> Outcome:
    """`prune` beside torch.compile, then ops beside third-party kernels."""
    outcome = _bench(check, "compile", share=0.75 if check.cuda else 1.0)
    if not check.cuda:
        return outcome
    others = _bench(check, "ops", "--op", ",".join(OTHERS), share=0.25)
    return Outcome(outcome.status or others.status, f"{outcome.note}; {others.note}")


def end_to_end(check: Check) -> Outcome:
    """Whole models, until their first token."""
    if not _has_module("transformers"):
        return Outcome(int(check.cuda), "there is no transformers")
    return _bench(check, "e2e")


def profile(check: Check) -> Outcome:
    """Nsight Compute over single calls of `prune`."""
    failed, profiles = [], []
    for index in range(len(one_prune.SIZES)):
        table = check.folder / f"ncu-{index}.csv"
        status = check.run(
            *("ncu", "--clock-control", "none", "--profile-from-start", "off", "--csv"),
            *("--print-units", "base", "--metrics", ",".join(one_prune.METRICS.values())),
            *("--log-file", str(table), "--force-overwrite"),
            *(sys.executable, "-m", "bench.gpu_check.one_prune", str(index)),
            share=1 / len(one_prune.SIZES),
        )
        kernels = one_prune.read(table) if table.exists() else []
        if status or not kernels:
            failed.append(f"workload {index}: status {status}, {len(kernels)} kernels")
        else:
            profiles.append({"workload": one_prune.name(index), "kernels": kernels})
        check.facts["profile"] = profiles
    return Outcome(int(bool(failed)), "; ".join(failed))


def _bench(check: Check, suite: str, *more: str, share: float = 1.0) -> Outcome:
    """A suite of `bench.run`, with a limit that lets it finish and write its results."""
    seconds = check.limit * share
    arguments = ["--suite", suite, "--device", check.device, "--output", str(check.folder)]
    # torch.compile checks the time before it starts; other cases are short.
    limit = seconds - 5 if suite == "compile" else max(seconds - 20, 0.6 * seconds)
    arguments += ["--seconds", str(limit)]
    # On a GPU too, the short list.
    if check.short or check.cuda:
        arguments.append("--short")
    if check.commit is not None:
        arguments += ["--commit", check.commit]
    measured = check.folder / "prune.json"
    if suite != "prune" and measured.exists():
        arguments += ["--ceilings", str(measured)]
    status = check.python("-m", "bench", "run", *arguments, *more, share=share)
    if status == OUT_OF_TIME:
        return Outcome(status, f"out of time after {seconds:.0f} s")
    left_out = [line for line in check.said().splitlines() if line.startswith("out of time: ")]
    return Outcome(status, "; ".join([*left_out, _last_line(check)]))


def _pytest(check: Check, mark: str) -> Outcome:
    """The tests with a mark; on a GPU some must pass."""
    files = tests_marked(mark)
    left_out = [] if _has_module("typer") else [name for name in files if "/cli/" in name]
    report = check.folder / f"{mark}.xml"
    report.unlink(missing_ok=True)
    arguments = ["-m", mark, "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    workers = min(MAX_WORKERS, max(2, (os.cpu_count() or 2) - 4))
    if _has_module("xdist"):
        arguments += ["-n", str(workers), "--dist", "worksteal"]
    status = check.python(
        *("-m", "pytest", *arguments, *(name for name in files if name not in left_out)),
        OMP_NUM_THREADS="2",
        CUBLAS_WORKSPACE_CONFIG=":4096:8",
    )
    found = read_junit(report) if report.exists() else Tests()
    check.facts[f"{mark} tests"] = found.facts()
    notes = ["out of time"] if status == OUT_OF_TIME else []
    notes += [f"without {', '.join(left_out)}, for want of typer"] if left_out else []
    if check.cuda and not found.passed:
        notes.append(f"no test ran: {found.why_skipped()}")
        status = status or 1
    elif not check.cuda and status == 5:
        status = 0
    return Outcome(status, "; ".join([found.count(), *notes]))


def _has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _has_tool(name: str) -> bool:
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which(name, path=paths) is not None


def _last_line(check: Check) -> str:
    lines = check.said().strip().splitlines()
    return lines[-1][:200] if lines else ""


STAGES: dict[str, Stage] = {
    "smoke": Stage(20, 40, smoke),
    "build": Stage(8, 60, build),
    "warm": Stage(12, 60, warm),
    "tests": Stage(45, 80, partial(_pytest, mark="gpu")),
    "prune": Stage(60, 80, partial(_bench, suite="prune")),
    "e2e": Stage(100, 130, end_to_end),
    "kernels": Stage(70, 95, partial(_pytest, mark="interpreter"), "they are of `make test`"),
    "sanitizer": Stage(60, 80, sanitizer, "it checks CUDA kernels only", "compute-sanitizer"),
    "compile": Stage(65, 90, compiled),
    "profile": Stage(45, 60, profile, "it looks at CUDA kernels only", "ncu"),
    "selectors": Stage(45, 60, partial(_bench, suite="selectors")),
}
