"""Files that are never seen half-written: a temporary file in the same folder, then a rename."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path


def atomic_write(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Writes a temporary file and renames it to ``path``, which stays as it was on an error.

    Args:
        path: the file; missing folders are made.
        content: text (as UTF-8), bytes, or what writes a file at the path that it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, as writers choose a format by it.
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
