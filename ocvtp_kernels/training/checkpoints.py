"""Checkpoints of a run: folders that a rename completes, of which the last two are kept."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ocvtp_kernels.pruner.config import is_number, read_json_object, require_whole

MAX_KEPT = 2
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
NAME = re.compile(r"step-(\d{8})")
TEMPORARY = ".aside-"  # begins the name of a folder that is being written or removed


class Snapshot(NamedTuple):
    """A run between two steps. Tensors on the CPU."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]  # "<quantity>/<parameter>"
    state: dict[str, Any]  # JSON


def save_snapshot(folder: Path, step: int, snapshot: Snapshot) -> Path:
    """Writes ``folder/step-<step>``, then removes all but the last two.

    A rename makes the folder, so at any moment it is complete or absent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}"
    temporary = folder / f"{TEMPORARY}{secrets.token_hex(4)}"
    temporary.mkdir()
    _write(temporary / MODEL, save(_contiguous(snapshot.model)))
    _write(temporary / OPTIMIZER, save(_contiguous(snapshot.optimizer)))
    _write(temporary / STATE, (json.dumps(snapshot.state, indent=2) + "\n").encode())
    temporary.rename(path)
    _sync(folder)
    for _, old in snapshots(folder)[:-MAX_KEPT]:
        _remove(old)
    return path


def snapshots(folder: Path) -> list[tuple[int, Path]]:
    """Steps and paths, oldest first."""
    if not folder.is_dir():
        return []
    matches = ((NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def load_snapshot(
    folder: Path, check: Callable[[Snapshot], object] = lambda snapshot: None
) -> Snapshot | None:
    """The last snapshot that can be read, None if there is none.

    One that cannot be read is skipped with a warning.

    Args:
        folder: of the snapshots.
        check: raises ValueError for one that is to be skipped too.
    """
    for step, path in reversed(snapshots(folder)):
        try:
            state = _read_state(path / STATE, step)
            snapshot = Snapshot(load_file(path / MODEL), load_file(path / OPTIMIZER), state)
            check(snapshot)
            return snapshot
        except (OSError, ValueError, SafetensorError) as error:
            warnings.warn(f"{path}: passed over, cannot be read: {error}", stacklevel=2)
    return None


def _read_state(path: Path, step: int) -> dict[str, Any]:
    """What a run continues with beside its tensors; ValueError unless it is that of a step."""
    state = read_json_object(path)
    if state.get("step") != step:
        raise ValueError(f"step: expected {step}, got {state.get('step')!r}")
    # Earlier versions had no such file.
    state.setdefault("health_bytes", 0)
    for key in ("best_epoch", "bad_epochs", "log_bytes", "health_bytes"):
        require_whole(key, state.get(key), 0)
    for key in ("seconds", "best") if state["best_epoch"] else ("seconds",):
        value = state.get(key)
        if not is_number(value) or not math.isfinite(value):
            raise ValueError(f"{key}: expected a finite number, got {value!r}")
    return state


def sweep(folder: Path, last: int) -> None:
    """Removes temporary folders of a killed run, and snapshots of steps after ``last``."""
    for path in folder.glob(f"{TEMPORARY}*") if folder.is_dir() else ():
        shutil.rmtree(path)
    for step, path in snapshots(folder):
        if step > last:
            _remove(path)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """An optimizer's state, a tensor a quantity and parameter."""
    return {
        f"{quantity}/{name}": value
        for name, parameter in named.items()
        for quantity, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Gives an optimizer the state that `optimizer_tensors` took and `check_optimizer` passed."""
    ordered = (p for group in optimizer.param_groups for p in group["params"])
    position = {id(parameter): index for index, parameter in enumerate(ordered)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        quantity, _, name = key.partition("/")
        state.setdefault(position[id(named[name])], {})[quantity] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def check_optimizer(named: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless AdamW's state, as of `optimizer_tensors`, is of these parameters."""
    shapes: dict[str, dict[str, torch.Size]] = {}
    for key, value in tensors.items():
        quantity, _, name = key.partition("/")
        shapes.setdefault(name, {})[quantity] = value.shape
    for name, own in shapes.items():
        if name not in named:
            raise ValueError(f"optimizer: unexpected parameter {name!r}")
        shape = named[name].shape
        expected = {"step": torch.Size(), "exp_avg": shape, "exp_avg_sq": shape}
        if own != expected:
            raise ValueError(f"optimizer: {name}: expected {expected}, got {own}")


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    # Renamed first: a folder that is half removed must not look like a snapshot.
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}")
    path.rename(temporary)
    shutil.rmtree(temporary)
