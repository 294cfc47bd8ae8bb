"""Tests of native code under AddressSanitizer and UndefinedBehaviorSanitizer:

    python -m tests.sanitized tests/csrc --shapes 2000

The arguments are pytest's. The sanitizers are preloaded into Python, and what the tests build has
them too. They end a process where they find something; what they say is printed at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.build_cases import ROOT, SANITIZERS, tools_or_skip

REPORTS = ROOT / "build" / "sanitizers"


def environment(reports: str | None = None) -> dict[str, str]:
    """That of a process with the sanitizers; their reports go to files of this name, or stderr."""
    (compiler,) = tools_or_skip("c++")
    libraries = []
    # The C++ runtime as well: whoever throws is looked up when AddressSanitizer starts.
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):
        command = [compiler, f"-print-file-name={name}"]
        path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if not os.path.isabs(path):
            sys.exit(f"{compiler} has no sanitizers for {SANITIZERS}: no {name}")
        libraries.append(os.path.realpath(path))
    log = f":log_path={reports}" if reports else ""
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        # Python keeps much until it ends.
        "ASAN_OPTIONS": f"detect_leaks=0:abort_on_error=1{log}",
        "UBSAN_OPTIONS": f"halt_on_error=1:abort_on_error=1:print_stacktrace=1{log}",
    }


def main(arguments: list[str]) -> int:
    REPORTS.mkdir(parents=True, exist_ok=True)
    for old in REPORTS.iterdir():
        old.unlink()
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "-m", "not slow"]
    given = environment(str(REPORTS / "report"))
    done = subprocess.run([*command, *arguments], cwd=ROOT, env=given)
    # Where all passes only warnings are there.
    for report in sorted(REPORTS.iterdir()) if done.returncode else []:
        print(report.read_text(errors="replace"))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
