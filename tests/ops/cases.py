"""Awkward arguments of every op, for the checks that every op must pass.

``tests/ops/<op>/test_<op>.py`` has them: ``arguments(batch, dtype)``, or ``ARGUMENTS`` by name
where a folder has several ops.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

Arguments = Callable[..., tuple[Any, ...]]


def collected() -> dict[str, Arguments]:
    """By op, what its folder of tests has."""
    found: dict[str, Arguments] = {}
    for folder in sorted(Path(__file__).parent.iterdir()):
        if (folder / f"test_{folder.name}.py").exists():
            module = import_module(f"tests.ops.{folder.name}.test_{folder.name}")
            found |= getattr(module, "ARGUMENTS", None) or {folder.name: module.arguments}
    return found


ARGUMENTS = collected()


def op(name: str) -> Any:
    """The op's default overload."""
    return getattr(torch.ops.ocvtp, name).default
