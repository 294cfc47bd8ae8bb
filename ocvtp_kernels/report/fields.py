"""Typed reading of JSON files, with errors that name the file and the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class ResultError(ValueError):
    """A result file is malformed; the message names the file and the field."""


@dataclass(frozen=True)
class Field:
    """A value of a JSON file, with its file and field path for error messages."""

    path: Path
    field_path: str
    value: Any

    def wrong(self, expected: str) -> ResultError:
        """The error that ``expected`` was not what was found."""
        got = repr(self.value)
        return ResultError(
            f"{self.path}: {self.field_path}: expected {expected}, got {got[:80]}"
            + ("…" if len(got) > 80 else "")
        )

    def get(self, name: str) -> Field:
        """The member ``name``, which must be there."""
        field_path = f"{self.field_path}.{name}" if self.field_path != "file" else name
        if not isinstance(self.value, Mapping):
            raise self.wrong("an object")
        if name not in self.value:
            raise ResultError(f"{self.path}: {field_path}: missing")
        return Field(self.path, field_path, self.value[name])

    def members(self) -> dict[str, Field]:
        """All members."""
        if not isinstance(self.value, Mapping):
            raise self.wrong("an object")
        return {name: self.get(name) for name in self.value}

    def items(self) -> list[Field]:
        """The elements of a list."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return [Field(self.path, f"{self.field_path}[{i}]", v) for i, v in enumerate(self.value)]

    def text(self, among: tuple[str, ...] | None = None) -> str:
        """A non-empty text, one of ``among`` if given."""
        if not isinstance(self.value, str) or not self.value:
            raise self.wrong("a text")
        if among is not None and self.value not in among:
            raise self.wrong(f"one of {', '.join(among)}")
        return self.value

    def string(self) -> str:
        """A text that may be empty."""
        if not isinstance(self.value, str):
            raise self.wrong("a text")
        return self.value

    def number(self) -> float:
        """A finite number, at least 0."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong("a number")
        if not math.isfinite(value) or value < 0:
            raise self.wrong("a finite number of at least 0")
        return float(value)

    def optional_number(self) -> float | None:
        """`number`, or None for null."""
        return None if self.value is None else self.number()

    def optional_signed(self) -> float | None:
        """A finite number of any sign, or None for null."""
        value = self.value
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise self.wrong("a finite number")
        return float(value)

    def seconds(self) -> float:
        """A time, more than 0."""
        if (value := self.number()) <= 0:
            raise self.wrong("a time above 0 s")
        return value

    def count(self) -> int:
        """A whole number, at least 0."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or self.value < 0:
            raise self.wrong("a whole number of at least 0")
        return self.value

    def optional_count(self) -> int | None:
        """`count`, or None for null."""
        return None if self.value is None else self.count()

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value


def load_json(path: Path) -> Field:
    """The file's content.

    Raises:
        ResultError: it cannot be read, or is not JSON.
    """
    try:
        return Field(path, "file", json.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{path}: cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise ResultError(f"{path}: not JSON: {error}") from error


class Times(NamedTuple):
    """Seconds per call: median, 20th and 80th percentile over ``rounds`` rounds."""

    median: float
    p20: float
    p80: float
    rounds: int


def read_times(row: Field, *names: str) -> Times:
    """The members ``names``, median, 20th and 80th percentile, and ``rounds``.

    Raises:
        ResultError: one is missing, is no time, or the median is not between the others.
    """
    median, p20, p80 = (row.get(name).seconds() for name in names)
    if not p20 <= median <= p80:
        raise row.get(names[0]).wrong(f"a median between {names[1]} {p20} and {names[2]} {p80}")
    return Times(median, p20, p80, row.get("rounds").count())
