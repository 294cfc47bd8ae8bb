"""Runs of lmms-eval on the task of scenes: in this process, and as its users start it."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.build_cases import ROOT

TASK, TASKS = "ocvtp_scenes", ROOT / "bench" / "retention" / "lmms_eval"
COUNT, SEED = 2, 11  # scenes of the task
PRUNER = "pruner.safetensors"
CPU = {"device": "cpu", "device_map": "cpu"}


@functools.cache
def task_manager() -> Any:
    from lmms_eval.tasks import TaskManager

    return TaskManager(include_path=str(TASKS), include_defaults=False)


def make(name: str, simple: bool = False, **arguments: Any) -> Any:
    """A model of lmms-eval by its name."""
    from lmms_eval.models import get_model

    return get_model(name, force_simple=simple)(**CPU, **arguments)


def evaluate(model: Any) -> tuple[list[str], dict[str, Any]]:
    """The answers of a model to the task, in the data's order, and its scores."""
    from lmms_eval.evaluator import simple_evaluate

    results = simple_evaluate(
        model=model, tasks=[TASK], task_manager=task_manager(), batch_size=1, bootstrap_iters=0
    )
    samples = sorted(results["samples"][TASK], key=lambda sample: sample["doc_id"])
    return [sample["resps"][0][0] for sample in samples], results["results"][TASK]


def run(
    arguments: str, *, model: str = "llava_hf_ocvtp", before: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """``lmms-eval`` on the task, in a process of its own, leaving its results in ``out``.

    Args:
        arguments: of the model, beside those of a CPU.
        model: its name.
        before: lines that run in the process before.
        environment: variables of it.
    """
    start = f"{before}\nfrom lmms_eval.cli.dispatch import main\nmain()"
    given = ",".join([arguments, *(f"{name}={value}" for name, value in CPU.items())])
    command = [sys.executable, "-c", start, "--model", model, "--model_args", given]
    command += ["--tasks", TASK, "--include_path", str(TASKS), "--limit", "4"]
    command += ["--output_path", "out", "--log_samples"]
    settings = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, env=settings, capture_output=True, text=True)


def read_samples() -> list[dict[str, Any]]:
    """What a run left in ``out``, in the data's order."""
    (path,) = Path("out").rglob("*_samples_*.jsonl")
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(samples, key=lambda sample: sample["doc_id"])
