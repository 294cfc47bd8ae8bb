"""The logs of a training run, which grow by whole rows, and the picture of one."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from ocvtp_kernels.files import atomic_write

HEADER = ("step", "epoch", "K", "loss", "lr", "val_loss", "seconds")
INK, TRAINING, VALIDATION, GRID = "#1b1d22", "#b9c4d4", "#d9480f", "#dcdee2"


Parsed = TypeVar("Parsed")


class Line(Protocol):
    """A row of a log."""

    def line(self) -> str:
        """As CSV."""
        ...


class Row(NamedTuple):
    """One step; steps and epochs are counted from 1."""

    step: int
    epoch: int
    num_slots: int
    loss: float
    lr: float
    val_loss: float | None  # of the epoch that ends with this step
    seconds: float  # of training up to here; steps repeated after a kill count once

    def line(self) -> str:
        """As CSV; nine digits identify a float32."""
        val = "" if self.val_loss is None else f"{self.val_loss:.9g}"
        return (
            f"{self.step},{self.epoch},{self.num_slots},{self.loss:.9g},{self.lr:.9g},{val},"
            f"{self.seconds:.3f}\n"
        )


class Log:
    """A CSV: whole rows are appended, and a resumed run first truncates it to its checkpoint.

    Args:
        path: of the file.
        size: bytes to keep of it, 0 to begin anew.
        header: its columns.
        read: raises ValueError for a file that is none of them.

    Attributes:
        size: bytes of the file.

    Raises:
        ValueError: the file is shorter than that, or what is kept of it is no log.
    """

    def __init__(
        self,
        path: Path,
        size: int,
        header: Sequence[str] = HEADER,
        read: Callable[[Path], object] | None = None,
    ) -> None:
        self.path, self.size = path, size
        if size == 0:
            atomic_write(path, ",".join(header) + "\n")
            return
        present = path.stat().st_size if path.exists() else 0
        if present < size:
            raise ValueError(f"{path}: expected at least {size} bytes to go on from, got {present}")
        os.truncate(path, size)
        (read or read_log)(path)

    def append(self, rows: Sequence[Line]) -> int:
        """Writes and syncs rows; returns the size."""
        with self.path.open("ab") as file:
            file.write("".join(row.line() for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())
            self.size = file.tell()
        return self.size


def read_log(path: Path) -> list[Row]:
    """The rows of a ``log.csv``.

    Raises:
        ValueError: the file has other columns, or is damaged.
    """
    return read_rows(path, HEADER, _parse)


def _parse(cells: list[str]) -> Row:
    step, epoch, count, loss, lr, val, seconds = cells
    return Row(
        int(step),
        int(epoch),
        int(count),
        float(loss),
        float(lr),
        float(val) if val else None,
        float(seconds),
    )


def read_rows(
    path: Path, header: Sequence[str], parse: Callable[[list[str]], Parsed]
) -> list[Parsed]:
    """The rows of a CSV of these columns.

    Raises:
        ValueError: the file has others, or ``parse`` refuses a row.
    """
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        try:
            if next(lines, []) != list(header):
                raise ValueError(f"expected the columns {', '.join(header)}")
            return [parse(line) for line in lines]
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}: line {lines.line_num}: {error}") from error


def draw_curve(rows: Sequence[Row], path: Path) -> None:
    """Draws training loss, step by step, and validation loss, epoch by epoch, to a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    steps, losses = [row.step for row in rows], [row.loss for row in rows]
    axes.plot(steps, losses, color=TRAINING, linewidth=0.8, label="training, a step")
    ends = [(row.step, row.val_loss) for row in rows if row.val_loss is not None]
    steps, val_losses = [step for step, _ in ends], [loss for _, loss in ends]
    label = "validation, an epoch"
    axes.plot(steps, val_losses, color=VALIDATION, marker="o", markersize=3, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(color=GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, labelcolor=INK)
    atomic_write(path, lambda temporary: figure.savefig(temporary, dpi=150))
