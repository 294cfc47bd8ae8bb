"""Files are written aside and renamed, so that nobody ever reads half of one."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Calls ``write`` with a new name beside ``path``, then renames that to ``path``.

    If ``write`` raises, ``path`` is as it was and nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        write(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
