"""Lines for people to read: of names that any file may have, and of errors."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Text in one line that any terminal takes, also where a path's bytes are not UTF-8."""
    return " ".join(text.encode("utf-8", errors="replace").decode().splitlines())


def describe_error(error: Exception) -> str:
    """An error in one line, never empty; with its type unless its own words are meant for users."""
    words = " ".join(one_line(str(error)).split())
    if words and isinstance(error, (ValueError, OSError, SyntaxError)):
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
