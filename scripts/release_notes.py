"""Prints the section of a version in CHANGELOG.md: scripts/release_notes.py 0.1.0."""

from __future__ import annotations

import re
import sys
from pathlib import Path

CHANGELOG = Path(__file__).resolve().parents[1] / "CHANGELOG.md"


def notes_of(version: str, changelog: str) -> str:
    """The text between the heading ``## [version] - day`` and the next.

    Raises:
        ValueError: there is no such heading, or nothing below it.
    """
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)"
    found = re.search(heading, changelog, re.M | re.S)
    if found is None or not found[1].strip():
        expected = "expected one with a dated section in CHANGELOG.md"
        raise ValueError(f"version: {expected}, got {version!r}")
    return found[1].strip() + "\n"


if __name__ == "__main__":
    print(notes_of(sys.argv[1], CHANGELOG.read_text(encoding="utf-8")), end="")
