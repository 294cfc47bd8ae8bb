"""Awkward arguments of every op, for the checks that every op must pass.

``tests/ops/<op>/test_<op>.py`` has them: ``arguments(batch, dtype)``, or ``ARGUMENTS`` by name
where a folder has several ops.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

Arguments = Callable[..., tuple[Any, ...]]


def op_modules() -> list[ModuleType]:
    """``tests/ops/<op>/test_<op>.py`` of every op."""
    names = sorted(folder.name for folder in Path(__file__).parent.iterdir())
    paths = {name: Path(__file__).parent / name / f"test_{name}.py" for name in names}
    return [import_module(f"tests.ops.{n}.test_{n}") for n, path in paths.items() if path.exists()]


def arguments_of(module: ModuleType) -> dict[str, Arguments]:
    """By op, what makes its arguments."""
    alone = module.__name__.rpartition(".test_")[2]
    several: dict[str, Arguments] | None = getattr(module, "ARGUMENTS", None)
    return several or {alone: module.arguments}


ARGUMENTS = {name: made for module in op_modules() for name, made in arguments_of(module).items()}


def op(name: str) -> Any:
    """The op's default overload."""
    return getattr(torch.ops.ocvtp, name).default
