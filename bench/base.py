"""Another revision of this package, built beside this one and timed in turns with it.

Two revisions cannot share a process, as both define the ops: the other one runs in a process of its
own, ``python -m bench.base``, with today's `bench`, and answers line by line.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.checkout import ROOT, BuildError, output_of, pip_install
from bench.results import CheckResult, Direction
from bench.timing import Sample
from bench.workloads import Workload
from ocvtp_kernels import native

BUILT = ROOT / "build" / "base"


class Base:
    """A revision that answers; a context manager.

    Args:
        rev: as Git names it.
        device: cpu or cuda.

    Raises:
        BuildError: it cannot be built, or today's bench does not run on it.
    """

    def __init__(self, rev: str, device: torch.device) -> None:
        sha = (output_of("git", "rev-parse", "--verify", f"{rev}^{{commit}}") or "").strip()
        if not sha:
            raise BuildError(f"base: Git knows no revision {rev!r}")
        self.name, self.rev = f"base {sha[:9]}", rev
        self.sample = Sample(self._take, "host")
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.base", device.type],
            cwd=built(sha, device),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        self._ask({"ask": "hello"})

    def __enter__(self) -> Base:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def begin(self, op: str, load: Workload, direction: Direction) -> CheckResult:
        """Its check by the correctness gate; `sample` is of this job from then on."""
        answer = self._ask({"ask": "begin", "job": [op, asdict(load), direction]})
        check = CheckResult(*answer["check"])
        if check.passed:
            self.sample = Sample(self._take, answer["method"], answer["note"])
        return check

    def check(self) -> CheckResult:
        """The gate's answer after the timing."""
        return CheckResult(*self._ask({"ask": "check"})["check"])

    def _take(self) -> float:
        seconds: float = self._ask({"ask": "take"})["seconds"]
        return seconds

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            self._process.wait()
            self._said.seek(0)
            said = self._said.read().strip().splitlines() or [str(error)]
            raise BuildError(
                f"base {self.rev}: today's bench does not run on it: {said[-1]}"
            ) from error
        return answer


def built(sha: str, device: torch.device) -> Path:
    """The folder of a revision, installed with its native objects, and today's bench beside it."""
    folder = BUILT / sha[:12]
    if not folder.exists():
        temporary = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        environment = {}
        if native.missing_reason(device.type) is None:
            environment["OCVTP_NATIVE"] = "cuda" if device.type == "cuda" else "1"
        if device.type == "cuda":
            # For this GPU alone: compiling for every architecture takes minutes.
            capability = torch.cuda.get_device_capability(device)
            environment["OCVTP_CUDA_ARCHITECTURES"] = "{}.{}".format(*capability)
        pip_install(f"git+file://{ROOT}@{sha}", temporary, **environment)
        temporary.replace(folder)
    shutil.rmtree(folder / "bench", ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "results", "budgets")
    shutil.copytree(ROOT / "bench", folder / "bench", ignore=ignored)
    return folder


def main(device_type: str) -> None:
    """Answers questions on standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is no answer

    from bench.gate import check_variant
    from bench.jobs import SEEDS, Job, sample_of_ours
    from bench.ops import case_of
    from bench.results import OURS
    from bench.timing import side_stream
    from bench.variants import Variant

    device = torch.device(device_type)
    job, sample, usual_threads = Job("", Workload(1, 1, 1, 1)), None, torch.get_num_threads()

    def check(seed: int) -> tuple[bool, str]:
        found = check_variant(case, Variant(OURS, case.call), job.direction, seed)
        return found.passed, found.note

    with side_stream(device):
        for line in sys.stdin:
            question = json.loads(line)
            answer: dict[str, Any] = {}
            if question["ask"] == "begin":
                op, load, direction = question["job"]
                job = Job(op, Workload(**load), direction)
                torch.set_num_threads(job.workload.threads or usual_threads)
                case = case_of(op, job.workload, device)
                answer["check"] = check(SEEDS[0])
                if answer["check"][0]:
                    sample = sample_of_ours(case, job)
                    answer |= {"method": sample.method, "note": sample.note}
            elif question["ask"] == "take":
                assert sample is not None
                answer["seconds"] = sample.take()
            elif question["ask"] == "check":
                answer["check"] = check(SEEDS[1])
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
