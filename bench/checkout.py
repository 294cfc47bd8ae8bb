"""The checkout that runs, its commit and its native objects; importing this imports no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def output_of(*command: str) -> str | None:
    """What a command prints; None where it is not there or fails."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def commit() -> str:
    """The commit run, "-dirty" if what runs differs from it; "unknown" outside a checkout."""
    head = output_of("git", "rev-parse", "HEAD")
    if not head:
        return "unknown"
    others = ("--", ".", ":!bench/results", ":!README.md")  # what runs write
    changed = output_of("git", "status", "--porcelain", "--untracked-files=no", *others)
    return head.strip() + ("-dirty" if changed else "")


def tests_marked(mark: str) -> list[str]:
    """The files of tests in which something bears a mark of pytest, sorted."""
    return sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if f"mark.{mark}" in path.read_text(encoding="utf-8")
    )


class BuildError(RuntimeError):
    """The package cannot be built; the message says why."""


def pip_install(source: str, target: Path, **environment: str) -> None:
    """Builds the package of a source that pip takes, and puts it into a folder.

    Raises:
        BuildError: pip fails.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--target", str(target), source]
    given = {**os.environ, **environment}
    done = subprocess.run(command, env=given, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{source} is not built: {done.stderr.strip()[-400:]}")
