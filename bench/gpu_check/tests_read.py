"""pytest's report, summed up by op and backend."""

from __future__ import annotations

import re
import xml.etree.ElementTree as xml
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BACKENDS = ("triton", "cuda", "chosen")


@dataclass
class Tests:
    """The outcomes of a run.

    Attributes:
        passed, failed: names of tests.
        skipped: reasons, and how many tests each.
    """

    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def count(self) -> str:
        """How many of each."""
        passed, failed = len(self.passed), len(self.failed)
        return f"{passed} passed, {failed} failed, {self.skipped.total()} skipped"

    def why_skipped(self) -> str:
        """The commonest reason."""
        return self.skipped.most_common(1)[0][0] if self.skipped else "none was found"

    def facts(self) -> dict[str, Any]:
        """For the summary: counts, the tests that failed, and passed and failed by subject."""
        right, wrong = (Counter(map(subject_of, names)) for names in (self.passed, self.failed))
        return {
            "passed": len(self.passed),
            "failed": self.failed,
            "skipped": dict(self.skipped.most_common()),
            "by subject": {name: [right[name], wrong[name]] for name in right | wrong},
        }


def subject_of(name: str) -> str:
    """Op and backend of a test of every op; else the test's file.

    ``tests.ops.test_gpu::test_never_waits[dtype0-triton-merge]`` is of "merge on triton".
    """
    file, _, test = name.partition("::")
    words = re.findall(r"[a-z_]+", test.partition("[")[2])
    backend = next((word for word in words if word in BACKENDS), None)
    op = words[-1] if words and file.rpartition(".")[0] == "tests.ops" else None
    if op is not None and backend is not None:
        return f"{op} on {'the one chosen' if backend == 'chosen' else backend}"
    return op or file.removeprefix("tests.")


def read_junit(path: Path) -> Tests:
    """A JUnit report; a truncated one counts as empty."""
    tests = Tests()
    try:
        cases = list(xml.parse(path).iter("testcase"))
    except xml.ParseError:
        return tests
    for case in cases:
        name = f"{case.get('classname')}::{case.get('name')}"
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            tests.failed.append(name)
        elif skip is not None:
            tests.skipped[skip.get("message") or "for no reason given"] += 1
        else:
            tests.passed.append(name)
    return tests
