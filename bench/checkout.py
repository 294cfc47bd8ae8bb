"""The checkout that runs, its commit and its native objects; importing this imports no torch."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
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


def build_native(source: Path, target: Path, **environment: str) -> None:
    """Builds the native objects of a source tree in a wheel, and puts them into ``target``.

    Raises:
        RuntimeError: they are not built.
    """
    with tempfile.TemporaryDirectory() as wheels:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", wheels]
        done = subprocess.run(
            [*command, "--disable-pip-version-check", "--no-build-isolation", str(source)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"its native objects are not built: {done.stderr[-400:]}")
        (wheel,) = Path(wheels).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".so"):
                    (target / Path(name).name).write_bytes(archive.read(name))
