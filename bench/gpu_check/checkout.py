"""The checkout under test; importing this does not import torch."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def commit() -> str:
    """The commit in twelve digits, "-dirty" if tracked files differ; "unknown" without Git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:
        said = ""
    return said or "unknown"


def tests_marked(mark: str) -> list[str]:
    """The files of tests in which something bears a mark of pytest, sorted."""
    return sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if f"mark.{mark}" in path.read_text(encoding="utf-8")
    )
