"""Settings of the authors' own lmms-eval: environment variables, named ``OCL_...``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# By argument; the second is what their code takes where a variable is not set.
_READ = {
    "budget": ("OCL_TARGET_NUM", "64"),
    "pruner": ("OCL_CKPT", None),
    "config": ("OCL_CONFIG", None),
    "reference_layer": ("OCL_LAYER_IDX", "8"),
}
# Of the others, what is evaluated here. The CLS token never competes.
_EXPECTED = {
    "OCL_ENABLE": ("1", "0"),
    "OCL_MODE": ("pruning",),
    "OCL_TOPK": ("1",),
    "OCL_PAD_MODE": ("att_score",),
    "OCL_ATTSEL": ("meanq",),
    "OCL_HAS_CLS": ("1", "0"),
}


def find_authors(environment: Mapping[str, str]) -> dict[str, str]:
    """The authors' settings among variables of the environment, where OpenCL has its own."""
    names = (*_EXPECTED, *(name for name, _ in _READ.values()))
    return {name: environment[name] for name in names if name in environment}


def read_authors(found: Mapping[str, str]) -> dict[str, Any]:
    """The arguments that the authors' settings stand for.

    Args:
        found: by `find_authors`.

    Returns:
        Nothing where none is set, a budget of 0 where they are not enabled.

    Raises:
        ValueError: a setting asks for what is not evaluated here.
    """
    if not found:
        return {}
    if found.get("OCL_ENABLE", "0") == "0":
        return {"budget": 0}
    for name, expected in _EXPECTED.items():
        if name in found and found[name] not in expected:
            raise ValueError(f"{name}: expected one of {expected}, got {found[name]!r}")
    # In theirs the prompt goes on behind the kept tokens without a gap.
    read = {each: found.get(name, default) for each, (name, default) in _READ.items()}
    return {**read, "positions": "consecutive"}
