"""Runs cases in a process of their own, and tells what was found.

A process says of each case that it begins, and how it ended. One that ends in between crashed or
hung with that case; the next one goes on behind it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from tests.build_cases import ROOT


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        target: what was called.
        valid: whether the call gave a result.
        finding: what is wrong, in a paragraph; empty where nothing is.
    """

    target: str
    valid: bool
    finding: str = ""


@dataclass(frozen=True)
class Plan:
    """Which cases run, and how long.

    Attributes:
        suite: a module with ``NAMES`` and ``run_case(seed, number)``.
        first, last: of the cases' numbers; None is no end.
        seconds: after which no case begins.
        timeout: seconds of a case after which it hangs.
    """

    seed: int = 0
    first: int = 0
    last: int | None = None
    seconds: float = 3600.0
    only: str = ""
    timeout: float = 60.0
    suite: str = "tests.fuzz.cases"


@dataclass
class Tally:
    """Of one target."""

    cases: int = 0
    valid: int = 0
    findings: int = 0
    seconds: float = 0.0


@dataclass
class Report:
    """What all cases came to."""

    plan: Plan
    tallies: dict[str, Tally] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, number: int, outcome: Outcome, seconds: float) -> None:
        tally = self.tallies.setdefault(outcome.target, Tally())
        tally.cases += 1
        tally.valid += outcome.valid
        tally.seconds += seconds
        if not outcome.finding:
            return
        tally.findings += 1
        said = re.sub(r"\d[\d.e+-]*", "#", outcome.finding.splitlines()[0])
        kind = f"{outcome.target}: {said[:120]}"
        self.kinds[kind] += 1
        if self.kinds[kind] == 1:
            command = f"python -m tests.fuzz --seed {self.plan.seed} --case {number}"
            print(f"\n{outcome.finding}\n    {command}", flush=True)

    @property
    def clean(self) -> bool:
        return not self.kinds

    def __str__(self) -> str:
        lines = [f"{'':30} {'cases':>7} {'valid':>6} {'ms':>6} {'found':>6}"]
        total = Tally()
        for name, one in [*sorted(self.tallies.items()), ("all", total)]:
            per_case = 1000 * one.seconds / max(1, one.cases)
            share = one.valid / max(1, one.cases)
            lines.append(f"{name:30} {one.cases:7} {share:6.0%} {per_case:6.1f} {one.findings:6}")
            for name in vars(total):
                setattr(total, name, getattr(total, name) + getattr(one, name))
        kinds = [f"{count} times {kind}" for kind, count in self.kinds.most_common()]
        found = f"{len(kinds)} findings" if kinds else "no findings"
        return "\n".join([*lines, *kinds, f"{found} in {self.seconds:.0f} s"])


def fuzz(plan: Plan) -> Report:
    """Runs all cases of a plan."""
    report, start = Report(plan), time.monotonic()
    first: int | None = plan.first
    while first is not None:
        left = plan.seconds - (time.monotonic() - start)
        first = _run_process(plan, first, left, report) if left > 0 else None
    report.seconds = time.monotonic() - start
    return report


def _run_process(plan: Plan, first: int, seconds: float, report: Report) -> int | None:
    """Runs cases until a process ends; the case that the next one begins with, None at the end."""
    with tempfile.TemporaryFile("w+") as stderr:
        process, lines = _start(plan, first, seconds, stderr)
        running, following = None, first
        for line in lines:
            told: Mapping[str, Any] = json.loads(line)
            if "begin" in told:
                running = told
            elif "outcome" in told:
                running, following = None, told["number"] + 1
                report.add(told["number"], Outcome(**told["outcome"]), told["seconds"])
            else:
                process.wait()
                return None if told["done"] else following
        code = process.wait()
        stderr.seek(0)
        last_words = stderr.read()[-4000:]
    if running is None:
        raise RuntimeError(f"no case ran, and the process ended with {code}:\n{last_words}")
    hung = "Timeout (" in last_words
    what = f"hangs for {plan.timeout:g} s" if hung else f"ends the process with {code}"
    outcome = Outcome(running["target"], False, f"the call {what}\n{last_words}")
    report.add(running["begin"], outcome, plan.timeout if hung else 0.0)
    return int(running["begin"]) + 1


def _start(
    plan: Plan, first: int, seconds: float, stderr: TextIO
) -> tuple[subprocess.Popen[bytes], Iterator[str]]:
    """The process, and what it tells, line by line."""
    reader, writer = os.pipe()
    given = {**vars(plan), "first": first, "seconds": seconds, "pipe": writer}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz.child", json.dumps(given)],
        cwd=ROOT,
        # Threads would only wait for one another, and Triton's kernels are to run without a GPU.
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"},
        pass_fds=[writer],
        stdout=stderr,
        stderr=stderr,
    )
    os.close(writer)

    def lines() -> Iterator[str]:
        with os.fdopen(reader) as pipe:
            yield from pipe

    return process, lines()
