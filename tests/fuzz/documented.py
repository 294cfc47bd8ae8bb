"""Arguments as docstrings describe them: layouts, dtypes and ranges, and values that fit."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.fuzz.draw import Draw

ANY_DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8),
    *(torch.bool, torch.complex64, torch.float8_e4m3fn),
)


@dataclass(frozen=True)
class Argument:
    """What a docstring says of an argument."""

    said: str
    layouts: tuple[tuple[str, ...], ...]

    @property
    def dtype(self) -> str:
        """One of "int64", "bool", "any", "own" (floating, whatever others are) and "shared"."""
        for word, dtype in (("int64", "int64"), ("bool ", "bool"), ("any dtype", "any")):
            if word in self.said:
                return dtype
        return "own" if re.search(r"floating ``|\bfloats\b", self.said) else "shared"


def arguments_of(function: Callable[..., Any], others: Mapping[str, Any]) -> dict[str, Argument]:
    """By name, what the docstring says of each argument.

    Args:
        others: functions that docstrings refer to, by name.
    """
    names = list(inspect.signature(function).parameters)
    text = inspect.getdoc(function) or ""
    text = text.split("Args:")[1] if "Args:" in text else ""
    text = re.split(r"\n(?:Returns|Raises):", text)[0]
    entries = [
        entry
        for entry in re.finditer(r"(?<![\w`])((?:\w+, )*\w+): ", text)
        if set(entry[1].split(", ")) <= set(names)
    ]
    found: dict[str, Argument] = {}
    ends = [*(entry.start() for entry in entries), len(text)][1:]
    for entry, end in zip(entries, ends, strict=False):
        said = " ".join(text[entry.end() : end].split())
        other = re.search(r"\bas `(\w+)`", said)
        known = arguments_of(others[other[1]], others) if other else {}
        layouts = tuple(tuple(one.split(", ")) for one in re.findall(r"``\[([^\]]*)\]``", said))
        own = Argument(said, layouts)
        if said.startswith("the same"):
            own = found[list(found)[-1]]
        found |= {name: known.get(name, own) for name in entry[1].split(", ")}
    return found


@dataclass
class Sizes:
    """The sizes that labels such as N stand for."""

    draw: Draw
    known: dict[str, int] = field(default_factory=dict)
    leading: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.leading = tuple(self.draw.choice((0, 1, 2, 5)) for _ in range(self.draw.randint(0, 3)))

    def __getitem__(self, label: str) -> int:
        if label not in self.known:
            self.known[label] = self.draw.batch() if label == "B" else self.draw.size()
        return self.known[label]

    def shape(self, layout: tuple[str, ...]) -> tuple[int, ...]:
        shape: list[int] = []
        for part in layout:
            times, label = re.fullmatch(r"(\d*)(.*)", part).groups()  # type: ignore[union-attr]
            shape += self.leading if label == "..." else [int(times or 1) * self[label]]
        return tuple(shape)


def tensor(draw: Draw, argument: Argument, sizes: Sizes, dtype: torch.dtype, below: int) -> Tensor:
    """A tensor that fits; ids are smaller than ``below``."""
    layout = draw.choice(argument.layouts)
    if argument.dtype == "int64" and len(layout) > 1 and layout[-1] != "N":
        # Distinct ids are no more than the tokens.
        sizes.known.setdefault(layout[-1], draw.randint(1, max(1, sizes["N"])))
    if ratio := re.search(r"\b([A-Z]) is a multiple of ([A-Z])\b", argument.said):
        sizes.known.setdefault(ratio[2], factor(draw, sizes[ratio[1]]))
    shape = sizes.shape(layout)
    if argument.dtype == "int64":
        return draw.ids(*shape, below=below)
    if argument.dtype == "bool":
        mask = draw.mask(torch.Size(shape), 0.7)
        mask[..., :1] = True
        return mask
    if argument.dtype == "any":
        dtype = draw.choice((dtype, *ANY_DTYPES))
    elif argument.dtype == "own" and draw.chance(0.3):
        dtype = draw.dtype()
    values = draw.any_of(*shape, dtype=dtype)
    return values.abs() if "not negative" in argument.said else values


def number(
    draw: Draw, name: str, kind: type, argument: Argument | None, sizes: Sizes, default: Any
) -> Any:
    """A number that fits, or a word."""
    said = argument.said if argument else ""
    if kind is bool:
        return draw.chance(0.5)
    if kind is float:
        numbers = (0.0, 0.3, 1.0, 1e-5, 0.8, 7.0)
        numbers = numbers[:-1] if "0 to 1" in said else numbers
        return default if draw.chance(0.5) and default is not None else draw.choice(numbers)
    if kind is str:
        words = re.findall(r'"(\w+)"', said)
        return draw.choice(words) if words else default
    if between := re.search(r"\b1 to (\w+)", said):
        most = max(1, sizes[between[1]])
        return draw.randint(1, most if draw.chance(0.3) else min(most, 9))
    if fixed := re.match(r"([A-Z])\b", said):
        return sizes[fixed[1]]
    if product := re.search(r"N = (\w+) \* (\w+)", said):
        rows = sizes.known.setdefault(product[1], factor(draw, sizes["N"]))
        return rows if name == product[1] else sizes["N"] // rows
    if "0 to (N - P) / 2" in said:
        prefix = sizes.known.setdefault("P", draw.randint(0, min(sizes["N"], 5)))
        return draw.randint(0, (sizes["N"] - prefix) // 2)
    return draw.randint(1, 9)


def factor(draw: Draw, product: int) -> int:
    """One of its divisors."""
    return draw.choice([n for n in range(1, product + 1) if product % n == 0] or [1])


def ids_below(argument: Argument, given: Mapping[str, Any], sizes: Sizes) -> int:
    """What ids stay below: the number of tokens, or the argument or size the docstring names."""
    named = re.search(r"0 to (\w+) - 1", argument.said)
    if named is None:
        return sizes["N"]
    return int(given[named[1]]) if named[1] in given else sizes[named[1]]


def is_square(size: int) -> bool:
    return math.isqrt(size) ** 2 == size
