"""Reading JSON files into dataclasses by their type hints; errors name the file and the field."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

GATED = "gated"  # in a hint: None where the row's correctness gate is closed, whatever stands there


class ResultError(ValueError):
    """A result file is malformed; the message names the file and the field."""


@dataclass(frozen=True)
class Members:
    """In a hint: the field is a ``kind`` made of members of its own row, which ``names`` lists.

    Of `Times` they are the median, the 20th and the 80th percentile. Any other dataclass reads its
    fields from the row, and one name is enough. An optional field is None where the first is null.
    """

    kind: type
    names: tuple[str, ...]
    is_optional: bool = False

    def read(self, row: Field) -> Any:
        """The field's value."""
        if self.is_optional and row.get(self.names[0]).value is None:
            return None
        return _times(row, *self.names) if self.kind is Times else read(self.kind, row)


# In a hint: what is expected of a value beyond its type, in words, and whether it is that.
Check = tuple[str, Callable[[Any], bool]]
Text = Annotated[str, ("a text", bool)]
Amount = Annotated[float, ("a finite number of at least 0", lambda value: value >= 0)]
Seconds = Annotated[float, ("a time above 0 s", lambda value: value > 0)]
TYPES: dict[type, tuple[Check, ...]] = {
    str: (("a text", lambda value: isinstance(value, str)),),
    bool: (("true or false", lambda value: isinstance(value, bool)),),
    int: (("a whole number of at least 0", lambda value: type(value) is int and value >= 0),),
    float: (("a number", lambda v: type(v) in (int, float)), ("a finite number", math.isfinite)),
}


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

    def members(self) -> Mapping[str, Any]:
        """The value, which must be an object."""
        if not isinstance(self.value, Mapping):
            raise self.wrong("an object")
        return self.value

    def get(self, name: str) -> Field:
        """The member ``name``, which must be there."""
        field_path = f"{self.field_path}.{name}" if self.field_path != "file" else name
        if name not in self.members():
            raise ResultError(f"{self.path}: {field_path}: missing")
        return Field(self.path, field_path, self.value[name])

    def items(self) -> list[Field]:
        """The elements of a list."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return [Field(self.path, f"{self.field_path}[{i}]", v) for i, v in enumerate(self.value)]


def load_json(path: Path, schema: int = 1) -> Field:
    """The file's content.

    Raises:
        ResultError: it cannot be read, is not JSON or is of another schema.
    """
    try:
        top = Field(path, "file", json.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{path}: cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise ResultError(f"{path}: not JSON: {error}") from error
    if read(int, top.get("schema")) != schema:
        raise top.get("schema").wrong(f"schema {schema}")
    return top


def read(hint: Any, field: Field) -> Any:
    """The field's value as ``hint`` describes it.

    A hint is one of `TYPES`, a Literal of texts, ``X | None``, a tuple, a dict by text (with a
    Literal for keys, by exactly those), one of these annotated with a `Check`, or a dataclass. Its
    fields are read from members of the same name, which may be missing where there is a default,
    or as `Members` and `GATED` say; members that have no field are ignored.

    Raises:
        ResultError: the value is something else.
    """
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind is Annotated:
        value = read(arguments[0], field)
        return _checked(field, value, [mark for mark in arguments[1:] if isinstance(mark, tuple)])
    if kind in (Union, UnionType):
        return None if field.value is None else read(arguments[0], field)
    if kind is Literal:
        one_of = f"one of {', '.join(arguments)}", arguments.__contains__
        return _checked(field, read(Text, field), [one_of])
    if kind is tuple:
        return tuple(read(arguments[0], item) for item in field.items())
    if kind is dict:
        names = get_args(arguments[0]) or field.members()
        return {name: read(arguments[1], field.get(name)) for name in names}
    if is_dataclass(kind):
        return _read_fields(kind, field)
    return kind(_checked(field, field.value, TYPES[kind]))


def _checked(field: Field, value: Any, checks: Iterable[Check]) -> Any:
    for expected, holds in checks:
        if not holds(value):
            raise field.wrong(expected)
    return value


def _read_fields(kind: Any, row: Field) -> Any:
    hints = get_type_hints(kind, include_extras=True)
    is_refused = "gate" in hints and not read(Gate, row.get("gate")).passed
    values: dict[str, Any] = {}
    for name, hint in hints.items():
        marks = getattr(hint, "__metadata__", ())
        made_of = next((mark for mark in marks if isinstance(mark, Members)), None)
        if GATED in marks and is_refused:
            values[name] = None
        elif made_of:
            values[name] = made_of.read(row)
        elif name in row.members() or not hasattr(kind, name):
            values[name] = read(hint, row.get(name))
    return kind(**values)


@dataclass(frozen=True)
class Gate:
    """Whether the results were right, and a note on their accuracy or what was wrong."""

    passed: bool
    note: str


@dataclass(frozen=True)
class Times:
    """Seconds per call: median, 20th and 80th percentile over ``rounds`` rounds."""

    median: float
    p20: float
    p80: float
    rounds: int


def _times(row: Field, *names: str) -> Times:
    median, p20, p80 = (read(Seconds, row.get(name)) for name in names)
    if not p20 <= median <= p80:
        raise row.get(names[0]).wrong(f"a median between {names[1]} {p20} and {names[2]} {p80}")
    return Times(median, p20, p80, read(int, row.get("rounds")))


IN_SECONDS = Members(Times, ("median_s", "p20_s", "p80_s"))


@dataclass(frozen=True)
class Versus:
    """Times of ours and of a baseline; a ratio is the baseline's over ours: above 1, ours wins."""

    theirs: Times
    ours: Times

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return self.theirs.median / self.ours.median

    @property
    def low(self) -> float:
        """The ratio at its worst: their 20th percentile over our 80th."""
        return self.theirs.p20 / self.ours.p80

    @property
    def high(self) -> float:
        """The ratio at its best: their 80th percentile over our 20th."""
        return self.theirs.p80 / self.ours.p20

    @property
    def is_within_spread(self) -> bool:
        """Whether 1 lies inside the spread, so that another run may reverse it."""
        return self.low <= 1 <= self.high
